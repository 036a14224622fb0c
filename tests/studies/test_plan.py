"""A plan is read as a whole, refused with the place of its mistake, and turned into cells."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from selfvox.errors import UsageError
from selfvox.models.build import plan_encoder as encoder_plan
from selfvox.studies import cost, design, measure_facts, read_plan, saved_plan, setup
from selfvox.studies import plan as plans
from selfvox.tasks import task_from_setting

from .conftest import FACTS, rotation


def arms(path, **facts):
    plan = read_plan.read_plan(str(path))
    facts_of = {method.name: facts.get(method.name, FACTS) for method in plan.trained_methods}
    return plan, {arm.name: arm for arm in design.list_arms(plan, facts_of)}, facts_of


def method_of(plan, name):
    """The method of this name, with the shared settings."""
    return next(method for method in plan.resolved_methods if method.name == name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [1]}, r"label: no such setting; did you mean 'labels'\?"),
        ({"labels": None}, "labels and fractions: give one of them"),
        ({"fractions": [0.5]}, "labels and fractions: give one of them"),
        ({"labels": None, "fractions": [1.5]}, "fractions: .* less than or equal to 1"),
        ({"labels": [0]}, "labels: .* greater than or equal to 1"),
        ({"seeds": [1, 1]}, "seeds: a value is given twice"),
        ({"test": 0}, "test and folds: give one of them"),
        ({"folds": 3}, "test and folds: give one of them"),
        ({"validation": None}, r"required settings are missing: validation \(subjects to"),
        ({"reference": "brats2019"}, r"reference: .* did you mean 'brats2018'\?"),
        ({"methods": {}}, "methods: is empty"),
        (
            {"methods": rotation(finetune={"network": "plian"})},
            r"rotation.finetune.network: .* did you mean 'plain'",
        ),
        (
            {"methods": {"scratch": "scratch"}, "finetune": {"network": "plian"}},
            r"methods.scratch.finetune.network: .* did you mean 'plain'",
        ),
        (
            {"methods": rotation(), "pretrain": {"network": {"name": "plain", "chanels": [4]}}},
            r"methods.rotation.pretrain.network.chanels: no such setting; did you mean 'channels'",
        ),
        (
            {"methods": {"a": {"pretrain": {"task": "rotation+simclr", "weights": [1]}}}},
            "methods.a.pretrain.weights: are 1 for 2 tasks",
        ),
        (
            {"methods": {"a": {"pretrain": {"task": "exemplar"}}}, "pretrain": {"batch": 1}},
            "methods.a.pretrain.task exemplar: .*; use --batch 2 or more",
        ),
        ({"methods": {"a": 3}}, "methods.a: should be `scratch` or settings"),
        ({"methods": {"a": "scrath"}}, "methods.a: should be `scratch` or settings"),
        ({"methods": {"a": "scratch", "b": "scratch"}}, "more than one is plain scratch"),
        ({"methods": {"../a": "scratch"}}, "methods.../a: cannot be the name of a folder"),
        (
            {"methods": {"a b": rotation()["rotation"], "a-b": rotation()["rotation"]}},
            "would share its folder",
        ),
        ({"methods": {"scratch": rotation()["rotation"]}}, "its name cannot start with scratch"),
        (
            {"methods": {"a": {"pretain": None}}},
            r"methods.a.pretain: no such setting; did you mean 'pretrain'\?",
        ),
        (
            {"methods": {"a": {"pretrain": {"tsk": "rotation"}}}},
            r"methods.a.pretrain.tsk: .* did you mean 'task'\?",
        ),
        (
            {"methods": {"a": {"pretrain": {"task": "rotatin"}}}},
            r"methods.a.pretrain.task: .* mean 'rotation'\?",
        ),
        (
            {"methods": {"a": {"pretrain": {"task": {"name": "simclr", "temprature": 1}}}}},
            "did you mean 'temperature'",
        ),
        (
            {"methods": {"a": {"pretrain": {"seed": 1}}}},
            "methods.a.pretrain.seed: is decided by the study",
        ),
        (
            {"methods": {"a": {"pretrain": {"source": "bids"}}}},
            "a.pretrain.source: is the layout of other scans, but `scans` is missing",
        ),
        (
            {"methods": {"a": {"pretrain": {"size": 64}}}},
            "pretrain.size: is decided by the section prepare",
        ),
        ({"methods": rotation(finetune={"labels": 3})}, "finetune.labels: is decided by the study"),
        (
            {"twins_2d": {"methods": ["rotatoin"]}},
            r"twins_2d.methods: the study pre-trains no method rotatoin; did you mean 'rotation'\?",
        ),
        (
            {"twins_2d": {"methods": ["rotation"], "slices": "axail"}},
            "twins_2d.slices: .* did you mean 'axial'",
        ),
        ({"finetune": {"stesp": 3}}, r"finetune.stesp: no such setting; did you mean 'steps'\?"),
        ({"finetune": {"encoder": "x"}}, "finetune.encoder: is decided by the study"),
        (
            {"prepare": {"spacing": [1, 1, 1], "size": [8, 8, 8]}},
            "prepare.size and spacing: give one of them",
        ),
    ],
)
def test_an_invalid_plan_is_refused_with_the_place_of_its_mistake(changes, message, write_plan):
    path = write_plan(**changes)
    with pytest.raises(UsageError, match=f"plan.yaml: .*{message}"):
        read_plan.read_plan(str(path))


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    (tmp_path / "plan.yaml").write_text("labels: [1]\n")
    with pytest.raises(UsageError) as refused:
        read_plan.read_plan(str(tmp_path / "plan.yaml"))
    for name in ("data", "methods", "validation"):
        assert f"{name} (" in str(refused.value)


def test_misspelt_and_missing_settings_are_named_together(tmp_path):
    (tmp_path / "plan.yaml").write_text("validaton: 3\nlable: [1]\n")
    with pytest.raises(UsageError) as refused:
        read_plan.read_plan(str(tmp_path / "plan.yaml"))
    for text in ("did you mean 'validation'", "did you mean 'labels'", "missing: data ("):
        assert text in str(refused.value)


def test_all_rules_that_a_plan_breaks_and_all_unknown_names_of_a_section_are_named(write_plan):
    with pytest.raises(UsageError) as refused:
        read_plan.read_plan(str(write_plan(test=0, seeds=[1, 1], against=["rotatoin"])))
    for text in ("test and folds", "seeds: a value is given twice", "against: no method rotatoin"):
        assert text in str(refused.value)
    with pytest.raises(UsageError) as refused:
        read_plan.read_plan(str(write_plan(finetune={"stesp": 3, "bacth": 2})))
    assert "finetune.stesp" in str(refused.value)
    assert "finetune.bacth" in str(refused.value)


def test_a_name_that_is_no_plan_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no such plan file or preset"):
        read_plan.read_plan(str(tmp_path / "nowhere.yaml"))


def test_paths_are_relative_to_the_plan(write_plan):
    path = write_plan(
        methods={"a": {"pretrain": {"scans": "other"}}, "b": {"pretrain": "runs/b"}, "c": "scratch"}
    )
    plan = read_plan.read_plan(str(path))
    assert plan.data == path.parent / "scans"
    assert plan.methods["a"]["pretrain"]["scans"] == str(path.parent / "other")
    assert plan.methods["b"]["pretrain"] == str(path.parent / "runs/b")
    assert read_plan.read_plan(str(path), data=Path("/there")).data == Path("/there")
    plan = read_plan.read_plan(str(write_plan(pretrain={"scans": "other"})))
    assert method_of(plan, "rotation").pretrain["scans"] == str(path.parent / "other")


def test_a_plan_s_paths_are_the_same_from_everywhere(write_plan, monkeypatch):
    methods = {
        "a": {"pretrain": {"scans": "other", "probe": "probe"}},
        "b": {"pretrain": "../runs/b"},
    }
    path = write_plan(methods=methods, pretrain={"probe": "shared"})
    plan = read_plan.read_plan(str(path))
    assert method_of(plan, "a").pretrain["probe"] == str(path.parent / "probe")
    assert plan.pretrain == {"probe": str(path.parent / "shared")}
    for folder in (path.parent, path.parent.parent):
        monkeypatch.chdir(folder)
        assert read_plan.read_plan(str(path.relative_to(folder))) == plan


def test_a_plan_is_kept_in_its_order_and_as_its_paths_were_written(write_plan, monkeypatch):
    first = {
        "b": {"pretrain": "runs/b"},
        "c": {"pretrain": {"scans": "other"}},
        "d": {"pretrain": "runs/d"},
    }
    path = write_plan(methods={"none": {"pretrain": None}, **first})
    monkeypatch.chdir(path.parent)
    saved = dataclasses.replace(
        read_plan.read_plan("plan.yaml"),
        methods={
            "none": {"pretrain": None, "finetune": {}},
            "b": {"pretrain": "runs/b", "finetune": {}},
            "c": {"pretrain": {"scans": "./other"}, "finetune": {}},
            "d": {"pretrain": "elsewhere/d", "finetune": {}},
        },
    )
    grown = dict(reversed(first.items()))
    write_plan(methods={"a": {"pretrain": {"task": "rotation"}}, **grown, "none": "scratch"})
    aligned = saved_plan.align_with_saved(read_plan.read_plan("plan.yaml"), saved)
    assert list(aligned.methods) == ["none", "b", "c", "d", "a"]
    for name in ("none", "b", "c"):
        assert aligned.methods[name] == saved.methods[name]
    assert aligned.methods["d"]["pretrain"] == str(path.parent / "runs/d")


def test_a_saved_plan_is_read_as_it_was(write_plan, tmp_path):
    plan = read_plan.read_plan(
        str(write_plan(prepare={"spacing": [1, 1, 2]}, finetune={"crop": [16, 16, 8]})), scale=0.5
    )
    saved_plan.save_plan(plan, tmp_path / "kept.yaml")
    assert saved_plan.load_plan(tmp_path / "kept.yaml") == plan


def test_a_twin_shares_all_of_its_method_but_the_encoder(write_plan):
    network = {"name": "plain", "channels": [4, 8], "strides": [[1], [2]]}
    path = write_plan(
        methods=rotation(finetune={"freeze": "never", "batch": 3}),
        finetune={"steps": 7, "batch": 2},
    )
    _, by_name, _ = arms(path, rotation=dataclasses.replace(FACTS, network=network))
    assert list(by_name) == ["scratch", "rotation"]
    assert by_name["rotation"].twin == "scratch"
    assert by_name["scratch"].pretrain is None
    assert by_name["scratch"].finetune == {"steps": 7, "batch": 3, "network": network}
    assert by_name["rotation"].finetune == {"steps": 7, "batch": 3, "freeze": "never"}


def test_a_method_of_its_own_from_scratch_has_the_network_that_the_others_share(write_plan):
    shared, own_network = (
        {"name": "plain", "channels": [4, 8]},
        {"name": "plain", "channels": [2, 4]},
    )
    methods = {
        "longer": {"pretrain": None, "finetune": {"steps": 900}},
        "smaller": {"pretrain": None, "finetune": {"network": own_network}},
        "flat": {"pretrain": None, "finetune": {"slices": "axial"}},
    }
    _, by_name, _ = arms(
        write_plan(methods={**rotation(), **methods}, pretrain={"network": shared})
    )
    assert by_name["longer"].finetune == {"steps": 900, "network": shared}
    assert by_name["smaller"].finetune == {"network": own_network}
    assert by_name["flat"].finetune == {"slices": "axial"}  # a network of volumes does not fit it


def test_frozen_features_are_compared_with_random_ones_and_with_no_longer_training(
    write_plan,
):
    probe = {"head": "linear", "freeze": "always"}
    _, by_name, _ = arms(write_plan(methods=rotation(finetune=probe), equal_compute="time"))
    assert list(by_name) == ["scratch frozen", "rotation"]
    assert by_name["scratch frozen"].finetune == {
        "head": "linear",
        "freeze": "always",
        "network": FACTS.network,
    }


def test_methods_share_a_twin_only_where_network_data_and_fine_tuning_agree(write_plan):
    methods = {
        "a": {"pretrain": {"task": "rotation"}},
        "frozen": {"pretrain": {"task": "rotation"}, "finetune": {"freeze": "always"}},
        "longer": {"pretrain": {"task": "rotation"}, "finetune": {"steps": 900}},
        "other": {"pretrain": {"task": "jigsaw"}},
        "base": "scratch",
    }
    _, by_name, _ = arms(
        write_plan(methods=methods), other=dataclasses.replace(FACTS, network={"name": "residual"})
    )
    twins = {name: arm.twin for name, arm in by_name.items()}
    assert twins["a"] == "base"
    assert twins["frozen"] == "base frozen"
    assert twins["longer"] == "base for longer"
    assert twins["other"] == "base for other"
    expected = {
        "a",
        "frozen",
        "longer",
        "other",
        "base",
        "base frozen",
        "base for longer",
        "base for other",
    }
    assert set(twins) == expected


@pytest.mark.parametrize("first", [True, False])
def test_no_twin_takes_the_name_of_a_method(write_plan, first):
    own_network = {
        "scratch": {"pretrain": None, "finetune": {"steps": 900}},
        "scratch frozen": {"pretrain": None, "finetune": {"freeze": "always"}},
        "scratch-for-rotation": {"pretrain": None, "finetune": {"batch": 1}},
    }
    methods = {
        **rotation(),
        "probe": {"pretrain": {"task": "rotation"}, "finetune": {"freeze": "always"}},
    }
    _, by_name, _ = arms(
        write_plan(
            methods=own_network | methods if first else methods | own_network, finetune={"steps": 7}
        )
    )
    for name, steps in (("rotation", 7), ("probe", 7), ("scratch", 900), ("scratch frozen", 7)):
        assert by_name[name].finetune["steps"] == steps
    for name in methods:
        assert by_name[name].twin not in own_network
        twin = by_name[by_name[name].twin]
        assert twin.pretrain is None
        assert twin.finetune == {**by_name[name].finetune, "network": FACTS.network}
    assert len({plans.folder_name(name) for name in by_name}) == len(by_name) == 7


def test_frozen_features_of_a_method_are_not_taken_for_random_ones(write_plan):
    methods = {
        "base": "scratch",
        "probe": {"pretrain": {"task": "rotation"}, "finetune": {"freeze": "always"}},
        "base frozen": {"pretrain": {"task": "simclr"}, "finetune": {"freeze": "always"}},
    }
    _, by_name, _ = arms(write_plan(methods=methods))
    assert {arm.twin for arm in by_name.values()} == {None, "base frozen for probe"}
    assert by_name["base frozen for probe"].pretrain is None
    assert by_name["base frozen"].pretrain == {"task": "simclr"}


def test_a_method_without_settings_of_its_own_is_scratch(write_plan):
    _, by_name, _ = arms(
        write_plan(methods={"none": {"pretrain": None}, **rotation()}, finetune={"steps": 7})
    )
    assert {name: arm.twin for name, arm in by_name.items()} == {"none": None, "rotation": "none"}


def test_methods_of_one_pre_training_share_it(write_plan):
    frozen = rotation(finetune={"freeze": "always"})["rotation"]
    plan = read_plan.read_plan(str(write_plan(methods={**rotation(), "frozen": frozen})))
    folders = {design.pretrain_folder(plan, method, 1, None) for method in plan.resolved_methods}
    assert folders == {Path("pretrain/rotation-seed-1")}


def test_methods_of_the_same_scans_share_their_store(write_plan):
    methods = {
        "a": {"pretrain": {"task": "rotation", "scans": "other"}},
        "b": {"pretrain": {"task": "simclr", "scans": "other"}},
        "c": {"pretrain": {"task": "simclr", "scans": "third"}},
        "d": {"pretrain": {"task": "simclr"}},
    }
    plan = read_plan.read_plan(str(write_plan(methods=methods)))
    stores = {method.name: method.scans_as for method in plan.resolved_methods}
    assert stores == {"a": "a", "b": "a", "c": "c", "d": None}


def test_a_method_is_resolved_once(write_plan):
    plan = read_plan.read_plan(str(write_plan()))
    assert plan.resolved_methods is plan.resolved_methods
    assert plan.trained_methods[0] is plan.resolved_methods[0]


def test_cells_are_methods_by_labels_by_seeds(write_plan):
    plan, by_name, facts = arms(write_plan(pretrain_seeds=[0, 5]))
    cells = design.list_cells(plan, facts)
    assert len(by_name) == 3
    assert len(cells) == 2 * 2 * (1 + 2 + 2)  # labels, seeds, arms by their pre-trainings
    assert len({cell.folder for cell in cells}) == len(cells)
    scratch = [cell for cell in cells if cell.arm.name == "scratch"]
    assert {(cell.labels, cell.seed) for cell in scratch} == {(1, 0), (3, 0), (1, 1), (3, 1)}
    assert [design.finetune_settings(plan, cell, FACTS)["subset_seed"] for cell in scratch] == [
        0,
        0,
        1,
        1,
    ]


def test_cells_come_seed_by_seed_so_that_a_stopped_study_can_compare(write_plan):
    plan, _, facts = arms(write_plan())
    order = [(cell.seed, cell.labels, cell.arm.name) for cell in design.list_cells(plan, facts)]
    names = ["scratch", "rotation", "simclr"]
    assert order == [(seed, labels, name) for seed in (0, 1) for labels in (1, 3) for name in names]


@pytest.mark.parametrize(("scans", "times"), [(None, 2 * 4), ("other", 2)])
def test_a_pre_training_on_other_scans_serves_all_folds(scans, times, write_plan):
    pretrain = {"task": "rotation"} | ({"scans": scans} if scans else {})
    plan, _, facts = arms(
        write_plan(methods={"a": {"pretrain": pretrain}}, test=None, folds=4, pretrain_seeds=[0, 1])
    )
    cells = [cell for cell in design.list_cells(plan, facts) if cell.pretrain_seed is not None]
    folders = {
        design.pretrain_folder(plan, cell.arm.method, cell.pretrain_seed, cell.fold)
        for cell in cells
    }
    assert len(folders) == times
    assert cost._pretrainings(plan, cells[0].arm) == times
    assert cost._pretrainings(plan, design.list_arms(plan, facts)[0]) == 0  # from scratch


def test_the_cost_of_a_pre_training_is_rounded_up_to_whole_steps(write_plan):
    facts = dataclasses.replace(FACTS, pretrain_steps=1, pretrain_step_flop=101.0)
    _, by_name, _ = arms(write_plan(equal_compute=True, methods=rotation()), rotation=facts)
    assert by_name["scratch equal compute"].extra_steps == 2


def test_the_twin_at_equal_compute_takes_the_steps_that_pre_training_cost(write_plan):
    plan, by_name, facts = arms(
        write_plan(equal_compute=True, methods=rotation(), finetune={"steps": 7})
    )
    cells = {cell.arm.name: cell for cell in design.list_cells(plan, facts)}
    assert by_name["scratch equal compute"].twin == "scratch"
    assert by_name["rotation"].equal == "scratch equal compute"
    steps = {
        name: design.finetune_settings(plan, cell, FACTS)["steps"] for name, cell in cells.items()
    }
    assert steps == {"scratch": 7, "rotation": 7, "scratch equal compute": 7 + 10 * 200 // 100}
    timed = dataclasses.replace(FACTS, pretrain_step_s=0.3, step_s=0.2)
    plan, by_name, _ = arms(write_plan(equal_compute="time", methods=rotation()), rotation=timed)
    assert by_name["scratch equal compute"].extra_steps == 15


def test_epochs_count_every_scan_of_a_subject(write_plan):
    plan, _, facts = arms(
        write_plan(equal_compute=True, methods=rotation(), finetune={"epochs": 7, "batch": 2}),
        rotation=dataclasses.replace(FACTS, scans_per_subject=3.0),
    )
    for cell in design.list_cells(plan, facts):
        settings = design.finetune_settings(plan, cell, facts["rotation"])
        # 7 epochs of 3 scans each, two a step; 20 steps for the pre-training
        of_epochs = {1: 11, 3: 32}[cell.labels]
        assert design.finetune_steps(settings, cell, facts["rotation"]) == of_epochs + (
            20 if "equal" in cell.arm.name else 0
        )


def test_a_frozen_encoder_is_timed_frozen():
    frozen = {"freeze": "always", "warmup": 0.5, "steps": 9}
    assert measure_facts._without_steps(frozen) == {"freeze": "always"}
    assert measure_facts._without_steps({**frozen, "freeze": "warmup"}) == {}


def test_scale_shrinks_the_steps_and_nothing_else():
    settings_of_run = {"steps": 300, "batch": 4, "validate_every": 50}
    assert plans.scale_steps(settings_of_run, 0.01, 1000) == {
        "steps": 3,
        "batch": 4,
        "validate_every": 1,
    }
    assert plans.scale_steps({"epochs": 10, "batch": 4}, 0.5, 1000) == {"epochs": 5, "batch": 4}
    assert plans.scale_steps({}, 0.01, 1000) == {"steps": 10}
    assert plans.scale_steps(settings_of_run, 1, 1000) == settings_of_run


@pytest.mark.parametrize("name", read_plan.preset_names())
def test_a_plan_that_comes_along_can_be_carried_out(name):
    with pytest.raises(UsageError, match="needs scans; give their folder with --data"):
        read_plan.read_plan(name)
    plan = read_plan.read_plan(name, Path("there"), scale=0.001)
    for method in plan.resolved_methods:
        pretrain = design.pretrain_settings(plan, method)
        crop = pretrain["crop"]
        assert len(crop) == (2 if "2D" in method.name or name == "retinopathy" else 3)
        task = task_from_setting(pretrain["task"]).configure(crop, (1.0,) * len(crop))
        network = encoder_plan(pretrain["network"], task.input_size(crop), (1.0,) * len(crop))
        assert network["channels"] == [16, 32, 64, 128, 256]
    lines = (read_plan.PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    numbers = [line for line in lines if re.search(r"\d", line.partition("#")[0])]
    assert [line for line in numbers if "#" not in line] == []  # every number says where it is from


def test_a_preset_s_name_is_corrected():
    with pytest.raises(UsageError, match=r"did you mean 'pancreas'\?"):
        read_plan.read_plan("pancraes")


def test_a_2d_twin_is_its_method_on_slices(write_plan):
    flat = {
        "methods": ["rotation"],
        "pretrain": {"crop": [16, 16], "batch": 8},
        "finetune": {"crop": [16, 16]},
    }
    shared = {"pretrain": {"crop": [16, 16, 16], "steps": 7}, "finetune": {"steps": 5}}
    plan = read_plan.read_plan(str(write_plan(methods=rotation(), twins_2d=flat, **shared)))
    assert list(plan.methods) == ["rotation", "2D-rotation"]
    by_name = method_of(plan, "2D-rotation")
    assert by_name.pretrain == {
        "task": "rotation",
        "steps": 7,
        "crop": [16, 16],
        "batch": 8,
        "slices": "axial",
    }
    assert by_name.finetune == {"steps": 5, "crop": [16, 16], "slices": "axial"}
    _, facts_of, _ = arms(write_plan(methods=rotation(), twins_2d=flat, **shared))
    assert {name: arm.twin for name, arm in facts_of.items() if arm.pretrain} == {
        "rotation": "scratch",
        "2D-rotation": "2D-scratch",
    }


def test_a_plan_is_readable_where_the_origin_of_its_network_is_gone(write_plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for network in ("gone/run", {"name": "gone/run"}, "timm:resnet18"):
        assert read_plan.read_plan(str(write_plan(pretrain={"network": network}))).pretrain == {
            "network": network
        }


def test_the_plans_that_the_docs_run_in_one_folder_agree_in_what_its_cells_share(tmp_path):
    folder = Path(__file__).parents[2] / "docs" / "studies" / "hippocampus"
    aligned, *more_plans = [
        read_plan.read_plan(str(path), tmp_path) for path in sorted(folder.glob("*.yaml"))
    ]
    assert len(more_plans) >= 4
    for plan in more_plans:
        assert setup._difference(plan, aligned) is None
        assert all(
            aligned.methods.get(name, value) == value for name, value in plan.methods.items()
        )
    differing = dataclasses.replace(aligned, finetune={**aligned.finetune, "freeze": "always"})
    assert setup._difference(differing, aligned).startswith("finetune: ")
