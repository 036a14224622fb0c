"""Unfinished studies: their folders are written by hand, as a study would leave them."""

import csv

import pytest

import selfvox
from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_csv, write_json
from selfvox.studies import figures, results
from selfvox.studies.design import list_cells
from selfvox.studies.facts import save_facts
from selfvox.studies.read_plan import read_plan
from selfvox.studies.saved_plan import save_plan

from .conftest import FACTS

FOLDS = {"test": None, "folds": 4, "labels": None, "fractions": [1.0], "seeds": [0]}


@pytest.fixture
def save_study(write_plan, tmp_path, monkeypatch):
    """Keep a study in which `done` says which cells are; returns its plan and folder."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # takes seconds

    def keep(
        is_finished,
        without=(),
        cases=lambda cell: (f"x{cell.fold}", f"y{cell.fold}"),
        graded=False,
        **changes,
    ):
        plan, out = read_plan(str(write_plan(**changes))), tmp_path / "out"
        facts = {
            method.name: FACTS for method in plan.trained_methods if method.name not in without
        }
        out.mkdir()
        save_plan(plan, out / "plan.yaml")
        save_facts(facts, out)
        for cell in filter(is_finished, list_cells(plan, facts)):
            (out / cell.folder).mkdir(parents=True)
            record = {
                "method": cell.arm.name,
                "labels": cell.labels or 4,
                "fraction": cell.fraction or 0.5,
                "seed": cell.seed,
                "pretrain_seed": cell.pretrain_seed,
                "fold": cell.fold,
                "transductive": cell.arm.pretrain is not None and cell.fold == 2,
                "slices": None,
                "score": "quadratic_kappa" if graded else "dice",
            }
            write_json(out / cell.folder / "done.json", record)
            if graded:
                rows = [[case, number % 2, 1] for number, case in enumerate(cases(cell))]
                write_csv(out / cell.folder / "answers.csv", ["case", "true", "predicted"], rows)
            else:
                rows = [[case, 1, "dark", 0.5 + cell.seed / 8] for case in cases(cell)]
                write_csv(out / cell.folder / "scores.csv", ["case", "class", "name", "dice"], rows)
        return plan, out

    return keep


def test_a_region_with_the_name_of_a_class_is_a_score_of_its_own(tmp_path):
    header = ["case", "class", "name", "dice"]
    rows = [
        ["x", "1", "kidney", 0.5],
        ["x", "2", "tumour", 0.9],
        ["x", "1+2", "kidney", 0.7],
        ["x", "2", "tumour", 0.9],
    ]
    write_csv(tmp_path / "scores.csv", header, rows)
    names = [row["name"] for row in results.read_rows(tmp_path, None)]
    assert names == ["kidney", "tumour", "kidney (region)", "tumour (region)"]


def test_seeds_that_the_plan_has_no_more_are_left_out(save_study, write_plan):
    plan, out = save_study(lambda cell: True, seeds=[0, 1, 2])
    assert {run.seed for run in results.read_results(plan, out)} == {0, 1, 2}
    fewer = read_plan(str(write_plan(seeds=[0, 2])))
    assert {run.seed for run in results.read_results(fewer, out)} == {0, 2}


def test_a_leak_in_any_fold_is_reported(save_study):
    plan, out = save_study(lambda cell: True, **FOLDS)
    study = {run.method: run for run in results.read_results(plan, out)}
    assert {name: run.transductive for name, run in study.items()} == {
        "scratch": False,
        "rotation": True,
        "simclr": True,
    }
    assert {len(run.paths) for run in study.values()} == {4}


def test_from_scratch_networks_in_3d_and_2d_are_paired_by_their_methods(save_study):
    methods = {
        "a": {"pretrain": {"task": "rotation"}, "finetune": {"steps": 9}},
        "b": {"pretrain": {"task": "simclr"}},
        "base": "scratch",
    }
    flat = {"methods": ["b"], "finetune": {"crop": [8, 8]}}
    study = save_study(
        lambda cell: False,
        methods=methods,
        twins_2d=flat,
        equal_compute=True,
        finetune={"steps": 7},
    )
    # `base` is the twin of a
    equal = ("base equal compute to b", "2D-base equal compute")
    assert results.pairs_in_2d(*study) == [("b", "2D-b"), ("base for b", "2D-base"), equal]


def test_runs_that_lack_a_fold_are_left_out(save_study, capsys):
    _, out = save_study(
        lambda cell: (cell.arm.name, cell.fold) not in {("rotation", 1), ("scratch", 3)}, **FOLDS
    )
    rows = selfvox.study("any", out=out, table=True)
    assert [row["method"] for row in rows] == ["simclr"]
    assert "2 of 12 cells are missing" in capsys.readouterr().err


@pytest.mark.parametrize("graded", [False, True])
def test_runs_without_a_common_case_are_not_compared(save_study, graded):
    _, out = save_study(
        lambda cell: True, cases=lambda cell: (cell.arm.name, cell.arm.name + "2"), graded=graded
    )
    rows = selfvox.study("any", out=out, table=True)
    assert {row["method"] for row in rows} == {"scratch", "rotation", "simclr"}
    assert {row["twin"] for row in rows} == {None}


def test_a_further_comparison_without_a_common_seed_is_left_out(save_study):
    _, out = save_study(
        lambda cell: (cell.arm.name == "scratch equal compute") == (cell.seed == 0),
        equal_compute=True,
    )
    rows = selfvox.study("any", out=out, table=True)
    assert {row["method"] for row in rows} == {
        "scratch",
        "rotation",
        "simclr",
        "scratch equal compute",
    }
    with (out / "comparisons.csv").open(newline="") as lines:
        assert list(csv.DictReader(lines)) == []


def test_a_method_that_is_not_measured_yet_is_left_out(save_study):
    _, out = save_study(lambda cell: True, without=["simclr"])
    assert {row["method"] for row in selfvox.study("any", out=out, table=True)} == {
        "scratch",
        "rotation",
    }
    (out / "methods.json").unlink()
    with pytest.raises(DataError, match="no cell is done yet"):
        selfvox.study("any", out=out, table=True)
