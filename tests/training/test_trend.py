"""Whether a run was long enough, on curves whose trend is known."""

import json
import math

import numpy as np
import pytest

from selfvox.commands.finetune import _report_trend
from selfvox.data.preparation.store import open_store
from selfvox.settings.verbs import Finetune, Pretrain
from selfvox.training.segmentation import Segmentation
from selfvox.training.trend import final_drop, late_fall, late_rise, twice_as_long


def scores(*values):
    steps = range(20, 20 * len(values) + 1, 20)
    return [{"step": step, "dice": value} for step, value in zip(steps, values, strict=True)]


def test_a_score_rises_late_where_the_best_is_in_the_last_fifth_and_clearly_better():
    assert late_rise(scores(0.1, 0.4, 0.6, 0.7, 0.75), "dice", 100) == pytest.approx(0.05)
    assert late_rise(scores(0.1, 0.4, 0.6, 0.7, 0.705), "dice", 100) == 0
    assert late_rise(scores(0.1, 0.4, 0.8, 0.7, 0.75), "dice", 100) == 0
    # too few to say
    assert late_rise([{"step": 100, "dice": 0.7}], "dice", 100) is None
    assert late_rise([{"step": 100, "loss": 1.0}], "dice", 100) is None


def test_the_last_score_has_dropped_where_it_is_clearly_below_the_best():
    assert final_drop(scores(0.1, 0.8, 0.6, 0.7), "dice") == (pytest.approx(0.1), 40)
    assert final_drop(scores(0.1, 0.8, 0.6, 0.78), "dice") is None
    assert final_drop(scores(0.1, 0.4, 0.8), "dice") is None
    assert final_drop([{"step": 100, "loss": 1.0}], "dice") is None


def losses(curve, noise, steps=1000):
    rng = np.random.default_rng(0)
    return [
        {"step": step, "loss": curve(step / steps) + noise * rng.normal()}
        for step in range(10, steps + 1, 10)
    ]


def test_a_loss_falls_late_where_the_fall_is_more_than_noise_and_not_small():
    assert late_fall(losses(lambda t: 2 - t, 0.1), 1000) == pytest.approx(0.2, abs=0.1)
    assert late_fall(losses(lambda t: 2 - t, 5.0), 1000) == 0
    assert late_fall(losses(lambda t: 2.0, 0.0), 1000) == 0
    # has converged: 95 % of the fall is over
    assert late_fall(losses(lambda t: math.exp(-10 * t), 0.0), 1000) == 0
    # too short to say
    assert late_fall(losses(lambda t: 2 - t, 0.0, steps=40), 40) is None


def test_a_segmenter_that_nobody_validates_is_judged_by_its_loss(shapes_store, tmp_path, capsys):
    settings = Finetune(labelled=shapes_store, out=tmp_path, encoder="none", steps=1000)
    task = Segmentation(open_store(shapes_store), settings)

    def said(lines):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        _report_trend(settings, tmp_path, task, 1000)
        return " ".join(capsys.readouterr().err.split())

    falling = losses(lambda t: 2 - t, 0.0)
    advice = said(falling)
    assert "no scan validates, and the loss was still falling, by 0.2 in the last fifth" in advice
    assert "such as --steps 2000" in advice
    assert said(losses(lambda t: math.exp(-10 * t), 0.0)) == ""
    # a score says more than the loss
    assert said([*falling, {"step": 400, "dice_mean": 0.7}, {"step": 1000, "dice_mean": 0.7}]) == ""


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({}, "--steps 200"),
        ({"steps": 100}, "--steps 200"),
        ({"epochs": 2.5}, "--epochs 5"),
        ({"minutes": 30}, "--minutes 60"),
    ],
)
def test_a_longer_run_is_asked_for_in_the_way_of_the_shorter_one(given, option):
    assert twice_as_long(Pretrain(scans="scans", out="out", **given), 100) == option
    settings = Finetune(labelled="scans", out="out", encoder="none", **given)
    assert twice_as_long(settings, 100) == option
