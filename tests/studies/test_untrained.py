"""Methods without a network, unlabelled scans, and comparisons with one method of the plan."""

import csv
import dataclasses
import json
import shutil

import pytest

import selfvox
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, UsageError
from selfvox.runs.typed_json import write_checked
from selfvox.studies import (
    check_paths,
    cost,
    design,
    measure_facts,
    read_plan,
    run_cell,
    run_untrained,
    stores,
)
from selfvox.studies.made_elsewhere import folder_of

from .conftest import FACTS, rotation

SIMCLR = {"pretrain": {"task": "simclr"}}


def arms_of(path, **facts):
    plan = read_plan.read_plan(str(path))
    facts_of = {method.name: facts.get(method.name, FACTS) for method in plan.trained_methods}
    return plan, {arm.name: arm for arm in design.list_arms(plan, facts_of)}, facts_of


@pytest.fixture
def predicted(tmp_path, study_scans):
    """Fill a folder with predictions: copies of the truth, and one of a scan without truth."""

    def fill(folder):
        shutil.copytree(study_scans / "labels", tmp_path / folder)
        shutil.copy(tmp_path / folder / "sub-001.nii.gz", tmp_path / folder / "somebody.nii.gz")
        return tmp_path / folder

    return fill


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"a": {"predictions": "there"}},
            r"there: is one folder for cells .*; write \{labels\} in",
        ),
        (
            {"a": {"predictions": "{label}"}},
            r"\{label\}: no such placeholder; did you mean 'labels'",
        ),
        ({"a": {"predictions": "{labels"}}, "has a brace without its partner"),
        ({"a": {"atlas": {"atlasses": 2}}}, r"a.atlas.atlasses: .* did you mean 'atlases'"),
        ({"a": {"atlas": {"scans": "x"}}}, "a.atlas.scans: is decided by the study"),
        ({"scratch": {"atlas": {}}}, "scratch: is not trained from scratch; rename it"),
        ({"a": {"pretrain": None, "transfer": "encoder"}}, "a.transfer: nothing is pre-trained"),
        ({"a": {**SIMCLR, "transfer": "decoder"}}, "a.transfer: .* did you mean 'encoder'"),
    ],
)
def test_a_method_that_cannot_be_is_refused(methods, message, write_plan):
    with pytest.raises(UsageError, match=message):
        read_plan.read_plan(str(write_plan(methods=methods)))


def test_all_problems_of_a_plan_are_named_at_once(write_plan):
    path = write_plan(
        methods={"a": {"pretrain": {"tsk": "rotation"}}, "b": 3, **rotation()},
        finetune={"stesp": 3},
        prepare={"labels": 3},
    )
    with pytest.raises(UsageError) as refused:
        read_plan.read_plan(str(path))
    text = str(refused.value)
    assert "plan.yaml: 4 problems: (1) prepare.labels" in text
    for part in ("(2) finetune.stesp", "(3) methods.a.pretrain.tsk", "(4) methods.b: should be"):
        assert part in text
    assert "\n" not in text


def test_an_unknown_method_to_compare_with_is_refused(write_plan):
    with pytest.raises(UsageError, match="against: no method rotatoin; did you mean 'rotation'"):
        read_plan.read_plan(str(write_plan(against=["rotatoin"])))


def test_all_that_is_not_there_is_named_before_a_scan_is_read(write_plan, tmp_path, pretended):
    methods = {
        "a": {"pretrain": "no-run"},
        "b": {"pretrain": {"task": "rotation", "scans": "no-scans"}},
        "c": {**SIMCLR, "finetune": {"unlabelled": "others", "teacher": "network"}},
        "d": {"predictions": "nnunet/{labels}"},
    }
    path = write_plan(methods=methods, data="nowhere")
    with pytest.raises(DataError) as refused:
        selfvox.study(str(path), out=tmp_path / "out")
    text = str(refused.value)
    assert text.startswith("6 problems: (1) ")
    for name in ("nowhere", "no-run", "no-scans", "others", "nnunet/1", "nnunet/3"):
        assert str(tmp_path / name) in text
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        DataError, match=r"nnunet/1: is no folder; put the predictions of .* d there"
    ):
        check_paths.check_paths(
            read_plan.read_plan(str(write_plan(methods={"d": methods["d"]}, labels=[1])))
        )


def test_predictions_made_elsewhere_are_scored_next_to_the_others(
    write_plan, pretended, predicted, tmp_path
):
    for labels in (1, 3):
        predicted(f"nnunet/{labels}")
    methods = {**rotation(), "nnU-Net": {"predictions": "nnunet/{labels}"}}
    out = tmp_path / "out"
    rows = selfvox.study(str(write_plan(methods=methods, against=["nnU-Net"])), out=out)
    ours = [row for row in rows if row["method"] == "nnU-Net"]
    # of one draw: the folders have no {seed}
    assert {(row["labels"], row["runs"], row["mean"]) for row in ours} == {(1, 1, 1), (3, 1, 1)}
    assert {(row["twin"], row["low"], row["cost_s"]) for row in ours} == {("scratch", None, None)}
    with (out / "comparisons.csv").open(newline="", encoding="utf-8") as lines:
        compared = {
            (row["comparison"], row["method"], row["twin"]) for row in csv.DictReader(lines)
        }
    assert compared == {("minus nnU-Net", name, "nnU-Net") for name in ("scratch", "rotation")}
    test = splits.read_split(out / "store" / "split.json").test
    for run in out.glob("cells/nnU-Net/*"):
        assert sorted(path.name for path in (run / "predictions").iterdir()) == [
            f"{case}.nii.gz" for case in sorted(test)
        ]
    # others in their place are not taken for them
    shutil.copy(tmp_path / "nnunet/1/somebody.nii.gz", tmp_path / "nnunet/1" / f"{test[0]}.nii.gz")
    with pytest.raises(UsageError, match="was made with settings other than the plan's"):
        selfvox.study(str(write_plan(methods=methods, against=["nnU-Net"])), out=out)


def test_a_missing_prediction_fails_its_cell_alone(write_plan, pretended, predicted, tmp_path):
    folder = predicted("mine")
    methods = {"mine": {"predictions": "mine"}, **rotation()}
    plan = str(write_plan(methods=methods, labels=[1], seeds=[0]))
    selfvox.study(plan, out=tmp_path / "dry", dry_run=True)
    test = splits.read_split(tmp_path / "dry/store/split.json").test
    (folder / f"{test[0]}.nii.gz").unlink()
    with pytest.raises(DataError, match=rf"1 of 3 cells failed.*1 of 2 test scans \({test[0]} f"):
        selfvox.study(plan, out=tmp_path / "out")


def test_the_placeholders_are_those_of_the_cell(write_plan):
    template = "p/{percent}-{seed}-{fold}"
    path = write_plan(
        methods={"a": {"predictions": template}, **rotation()},
        labels=None,
        fractions=[0.05, 1.0],
        folds=2,
        test=None,
    )
    plan, _, facts = arms_of(path)
    cells = [cell for cell in design.list_cells(plan, facts) if cell.arm.name == "a"]
    assert len(cells) == 2 * 2 * 2
    names = {folder_of(cell.arm.method.predictions, cell).name for cell in cells}
    assert names == {f"{p}-{s}-{f}" for p in ("5", "100") for s in (0, 1) for f in (0, 1)}


def test_registration_alone_carries_the_labels_of_the_drawn_subjects(
    write_plan, pretended, tmp_path, monkeypatch
):
    carried = []

    class Carried:
        def __init__(self, out, labelled, atlases):
            carried.append((out, {case.subject for case in labelled.cases}, atlases))

    def write(cases, predictions, workers):
        out = carried[-1][0]
        out.mkdir(parents=True, exist_ok=True)
        for case in cases:
            shutil.copy(case.label, out / f"{case.id}.nii.gz")

    monkeypatch.setattr(run_untrained, "AtlasPredictions", Carried)
    monkeypatch.setattr(run_untrained, "carry_to_scans", write)
    monkeypatch.setattr(check_paths, "check_installed", lambda: None)
    methods = {**rotation(), "registration": {"atlas": {"atlases": 2}}}
    rows = selfvox.study(str(write_plan(methods=methods)), out=tmp_path / "out")
    assert {row["mean"] for row in rows if row["method"] == "registration"} == {1}
    assert len(carried) == 4
    for out, subjects, atlases in carried:
        assert atlases == 2
        twin = tmp_path / "out" / "cells" / "scratch" / out.parent.name
        assert set(splits.read_split(twin / "split.json").train) == subjects
    # as others who train elsewhere read them
    with (tmp_path / "out" / "subjects.csv").open(newline="", encoding="utf-8") as lines:
        listed = [row for row in csv.DictReader(lines) if row["part"] == "train"]
    for labels, seed in ((1, 0), (3, 1)):
        split = tmp_path / "out" / "cells" / "scratch" / f"{labels}-labels-seed-{seed}"
        assert {
            row["subject"]
            for row in listed
            if (row["labels"], row["seed"]) == (f"{labels}", f"{seed}")
        } == set(splits.read_split(split / "split.json").train)


def test_regions_of_the_plan_are_those_of_methods_without_a_network_too(
    write_plan, pretended, predicted, tmp_path
):
    predicted("mine")
    methods = {"mine": {"predictions": "mine"}}
    plan = write_plan(
        methods=methods, labels=[1], seeds=[0], finetune={"regions": "both=1,2;bright=2"}
    )
    (row,) = [
        row
        for row in selfvox.study(str(plan), out=tmp_path / "out")
        if row["name"] == "mean of regions"
    ]
    assert (row["method"], row["mean"]) == ("mine", 1)


def test_a_teacher_that_the_labelled_scans_would_choose_is_refused(write_plan):
    methods = rotation(finetune={"unlabelled": "others"})
    with pytest.raises(UsageError, match=r"rotation\.finetune\.teacher: auto .*; write atlas, net"):
        read_plan.read_plan(str(write_plan(methods=methods)))


def test_a_seed_that_is_added_first_is_no_second_draw_of_predictions_made_elsewhere(
    write_plan, pretended, predicted, tmp_path
):
    predicted("mine")
    methods = {**rotation(), "mine": {"predictions": "mine"}}
    for seeds in ([0], [7, 0]):
        plan = write_plan(methods=methods, labels=[1], seeds=seeds)
        rows = selfvox.study(str(plan), out=tmp_path / "out")
        assert {(row["runs"], row["low"]) for row in rows if row["method"] == "mine"} == {(1, None)}


def test_registration_is_compared_with_the_plain_network_not_with_its_variants(write_plan):
    longer = {"pretrain": None, "finetune": {"steps": 50}}
    registration = {"atlas": {"atlases": 1}}
    for methods, twin in (
        ({"longer": longer, "simclr": SIMCLR, "registration": registration}, "scratch"),
        ({"longer": longer, "registration": registration}, "longer"),
    ):
        assert arms_of(write_plan(methods=methods))[1]["registration"].twin == twin


def test_what_teaches_unlabelled_scans_is_shared_with_the_twin(write_plan):
    methods = {
        "plain": {},
        "both": {"finetune": {"unlabelled": "others", "teacher": "both", "rounds": 2}},
        "atlas": {"finetune": {"unlabelled": "others", "teacher": "atlas"}},
    }
    for settings in methods.values():
        settings["pretrain"] = {"task": "simclr"}
    path = write_plan(methods=methods, equal_compute=True)
    plan, arms, facts = arms_of(path)
    assert arms["both"].twin == "scratch unlabelled"
    assert arms["atlas"].twin == "scratch unlabelled for atlas"
    for name in ("both", "atlas"):
        twin = arms[arms[name].twin].finetune
        assert twin["unlabelled"] == str(path.parent / "others")
        assert twin["teacher"] == methods[name]["finetune"]["teacher"]
    # 20 steps more in all, dealt to three trainings
    extra = {name: arms[arms[name].equal].extra_steps for name in methods}
    assert extra == {"plain": 20, "both": 7, "atlas": 20}
    cells = {cell.arm.name: cell for cell in design.list_cells(plan, facts)}
    times = {name: cost.cell_seconds(plan, cells[name], FACTS) for name in methods}
    assert times["both"] - 1 == 3 * (times["plain"] - 1) == 3 * (times["atlas"] - 1)
    by_name = {method.name: method for method in plan.resolved_methods}
    out = path.parent / "out"
    stores_of = {
        stores.unlabelled_store(plan, by_name[name], out, None) for name in ("both", "atlas")
    }
    assert stores_of == {out / "unlabelled" / "both"}


def test_unlabelled_scans_of_the_study_are_its_store(write_plan, pretended, tmp_path, monkeypatch):
    seen = []
    finetune = run_cell.finetune

    def look(settings, is_alone=False):
        seen.append(settings.unlabelled)
        finetune(settings)

    monkeypatch.setattr(run_cell, "finetune", look)
    methods = rotation(finetune={"unlabelled": "scans", "teacher": "network"})
    out = tmp_path / "out"
    selfvox.study(str(write_plan(methods=methods, labels=[1], seeds=[0])), out=out)
    assert set(seen) == {out / "store"}


def test_other_unlabelled_scans_are_prepared_once_by_the_recipe_of_the_study(
    write_plan, pretended, tmp_path, study_scans
):
    shutil.copytree(study_scans / "images", tmp_path / "others")
    methods = rotation(finetune={"unlabelled": "others", "teacher": "network"})
    out = tmp_path / "out"
    selfvox.study(str(write_plan(methods=methods, labels=[1], seeds=[0])), out=out)
    prepared = open_store(out / "unlabelled" / "rotation")
    assert prepared.recipe == open_store(out / "store").recipe
    assert len(prepared.cases) == 8
    assert not any(case.has_label for case in prepared.cases)


def test_registrations_of_one_pair_are_made_once_for_all_cells(tmp_path):
    runs = [tmp_path / "cells" / name / "1-labels-seed-0" for name in ("a", "b")]
    for run in runs:
        run_cell.share_registrations(tmp_path, run)
        run_cell.share_registrations(tmp_path, run)  # a resumed run
    (runs[0] / "copies" / "pairs" / "key.json").write_text("{}")
    (runs[0] / "copies" / "registrations.csv").write_text("of this run")
    assert (runs[1] / "copies" / "pairs" / "key.json").read_text() == "{}"
    assert not (runs[1] / "copies" / "registrations.csv").exists()


def test_the_encoder_alone_is_transferred_on_request(write_plan, pretended, tmp_path, monkeypatch):
    encoders = {}
    finetune = run_cell.finetune

    def look(settings, is_alone=False):
        encoders[settings.out.parent.name] = settings.encoder
        finetune(settings)

    monkeypatch.setattr(run_cell, "finetune", look)
    methods = {**rotation(), "alone": {**rotation()["rotation"], "transfer": "encoder"}}
    out = tmp_path / "out"
    selfvox.study(str(write_plan(methods=methods, labels=[1], seeds=[0])), out=out)
    run = out / "pretrain" / "rotation-seed-0"
    assert encoders == {"scratch": "none", "rotation": str(run), "alone": str(run / "encoder")}
    assert len([name for name in pretended if name.startswith("pretrain")]) == 1


def test_the_summary_has_the_cost_of_a_run_and_of_its_encoder(write_plan, pretended, tmp_path):
    out = tmp_path / "out"
    plan = str(write_plan(methods=rotation()))
    selfvox.study(plan, out=out)
    file = out / "pretrain" / "rotation-seed-0" / "done.json"
    write_checked(file, {**json.loads(file.read_text()), "cpu_s": 15.0})
    rows = selfvox.study(plan, out=out)
    for row in rows:
        pretraining = 15 if row["method"] == "rotation" else 0
        expected = ("cpu", 5, pretraining, 100)
        columns = ("cost_unit", "cost_s", "pretrain_cost_s", "peak_memory_mib")
        assert tuple(row[name] for name in columns) == expected
        assert row["cost_ratio"] == (4 if row["method"] == "rotation" else None)


def test_folds_that_share_an_encoder_count_it_once(write_plan, pretended, tmp_path, study_scans):
    shutil.copytree(study_scans / "images", tmp_path / "others")
    changes = {"test": None, "folds": 2, "validation": 1, "labels": [1], "seeds": [0]}
    pretrain = {"task": "rotation", "scans": "others"}
    for name, scans in (("shared", True), ("own", False)):
        settings = pretrain if scans else {"task": "rotation"}
        plan = write_plan(
            methods={"rotation": {"pretrain": settings}}, transductive=scans, **changes
        )
        rows = selfvox.study(str(plan), out=tmp_path / name)
        row = next(row for row in rows if row["method"] == "rotation")
        assert (row["cost_s"], row["pretrain_cost_s"]) == (10, 5 if scans else 10)


def test_a_method_without_a_network_is_measured_by_its_voxels(write_plan, pretended, tmp_path):
    path = write_plan(methods={**rotation(), "r": {"atlas": {}}}, labels=[1])
    plan = read_plan.read_plan(str(path))
    out = tmp_path / "out"
    selfvox.study(str(write_plan(methods=rotation(), labels=[1])), out=out, dry_run=True)
    facts = measure_facts._measure_untrained(plan, out, plan.untrained_methods[0])
    voxels = sum(
        case.shape[0] * case.shape[1] * case.shape[2]
        for case in open_store(out / "store").cases
        if case.subject in splits.read_split(out / "store" / "split.json").test
    )
    assert facts.test_s == pytest.approx(1.2e-5 * voxels)
    cell = next(
        cell for cell in design.list_cells(plan, {"rotation": FACTS}) if cell.arm.name == "r"
    )
    three = dataclasses.replace(cell, labels=3)
    assert cost.cell_seconds(plan, three, facts) == pytest.approx(3 * facts.test_s)
