"""Whether runs were long enough, from metrics that are written by hand."""

import csv
import dataclasses
import math

import pytest

from selfvox.runs.ledger import write_records
from selfvox.studies import table
from selfvox.studies.convergence import late_change
from selfvox.studies.results import Cost

from .test_table import result


@pytest.fixture
def run_with(tmp_path):
    """A run with these metrics by step."""

    def make(seed, **metrics):
        path = tmp_path / f"{seed}"
        path.mkdir()
        steps = range(10, 101, 10)
        lines = [
            {"step": step, name: value}
            for name, values in metrics.items()
            for step, value in zip(steps, values, strict=True)
            if not math.isnan(value)
        ]
        write_records(path / "metrics.jsonl", lines)
        return dataclasses.replace(result("m", 2, seed, {"x": [0.5, 0.5]}), paths=(path,))

    return make


RISES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.55, 0.6]
LEVEL = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]


def test_the_summary_says_in_how_many_runs_the_score_still_rose(run_with):
    runs = [run_with(0, dice_mean=RISES), run_with(1, dice_mean=LEVEL), run_with(2)]
    row = table.summarise(runs)[0]
    assert row["rising"] == 1
    # the mean of both is .525 at step 90, and .5 before
    assert row["late_change"] == pytest.approx(0.025)
    assert table.summarise(runs[2:])[0]["rising"] is None


def test_the_table_of_scores_says_of_each_run_how_its_curve_ends_and_what_it_took(
    run_with, tmp_path
):
    runs = [run_with(0, dice_mean=RISES), run_with(1, dice_mean=LEVEL), run_with(2)]
    runs[1] = dataclasses.replace(runs[1], cost=Cost("gpu", 7.0, {"encoder": 3.0}, 512.0))
    table._write_scores(runs, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as lines:
        rows = {row["seed"]: row for row in csv.DictReader(lines)}
    columns = ("late_change", "rising", "cost_unit", "cost_s", "pretrain_cost_s")
    values = {seed: [row[name] for name in columns] for seed, row in rows.items()}
    # the best of the last fifth is .6, of the steps before .5
    assert values == {
        "0": ["0.1", "1", "", "", ""],
        "1": ["0", "0", "gpu", "7", "3"],
        "2": ["", "", "", "", ""],
    }
    assert [row["peak_memory_mib"] for row in rows.values()] == ["", "512", ""]


def test_without_validation_the_loss_decides(run_with):
    falls = [1 - score for score in RISES]
    assert late_change([run_with(0, loss=falls)]) == pytest.approx(0.5 - 0.575)
    assert late_change([run_with(1, loss=falls, dice_mean=LEVEL)]) == 0


def test_a_single_validation_leaves_the_loss_to_decide(run_with):
    once = [math.nan] * 9 + [0.6]
    falls = [1 - score for score in RISES]
    assert late_change([run_with(0, loss=falls, dice_mean=once)]) == pytest.approx(0.5 - 0.575)
    assert late_change([run_with(1, loss=[0.5] * 10, dice_mean=once)]) == 0


def test_what_the_metrics_do_not_tell_is_not_taken_for_converged(run_with):
    once = [math.nan] * 9 + [0.6]
    run = run_with(0, dice_mean=once)
    assert late_change([run]) is None
    assert table.summarise([run])[0]["rising"] is None
    assert late_change([run_with(1)]) is None
