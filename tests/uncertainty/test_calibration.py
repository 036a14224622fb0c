"""Intervals cover as often as they promise, and a line recovers a known bias: simulations."""

import dataclasses
import json
import math

import numpy as np
import pytest

from selfvox.errors import DataError
from selfvox.runs.typed_json import write_checked
from selfvox.uncertainty import calibration as module
from selfvox.uncertainty.calibration import (
    PRIOR_CASES,
    Measure,
    fit_lines,
    fit_parts,
    held_out_dice,
    make_calibration,
    volume_scale,
)
from selfvox.uncertainty.calibration_file import read_calibration, write_calibration
from selfvox.uncertainty.conformal import conformal_quantile, promised_level
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.mc_dropout import Dropout

SETTINGS = PassSettings(passes=20, dropout=Dropout(0.3, 0.0, "element", 0))


def draw(rng, count, first=0):
    """Scans whose passes agree far too well: Dice is 0.2 lower, volumes are 10 % too small."""
    measures = []
    for number in range(first, first + count):
        agreement = rng.uniform(0.8, 0.98)
        true = rng.uniform(5, 50)
        spread = true * rng.uniform(0.01, 0.1)
        measures.append(
            Measure(
                case=f"case_{number}",
                subject=f"subject_{number}",
                agreement=agreement,
                volume=0.9 * true + rng.normal(0, 2) * spread,
                spread=spread,
                dice=2 * agreement - 1.1 + rng.normal(0, 0.02),
                true_volume=true,
            )
        )
    return measures


@pytest.mark.parametrize("subjects", [3, 8, 9, 19, 20, 50])
def test_a_further_error_is_below_the_quantile_as_often_as_promised(subjects):
    errors = np.random.default_rng(0).exponential(size=(20000, subjects + 1))
    covered = [row[-1] <= conformal_quantile(row[:-1].tolist()) for row in errors[:4000]]
    rank = min(subjects, math.ceil((subjects + 1) * 9 / 10 - 1e-9))
    # exact for any errors
    assert np.mean(covered) == pytest.approx(rank / (subjects + 1), abs=0.02)
    assert rank / (subjects + 1) >= promised_level(subjects)
    assert promised_level(subjects) == (0.9 if subjects >= 9 else subjects / (subjects + 1))


def test_intervals_of_volumes_and_ranges_of_dice_hold_the_truth_of_new_scans():
    rng = np.random.default_rng(1)
    volumes = []
    ranges = []
    for _ in range(150):
        measures = draw(rng, 21)
        (fitted,) = fit_parts({"organ": measures}, "ml").values()
        for new in draw(rng, 10):
            half = fitted.volume_factor * volume_scale(new.volume, new.spread, "ml")
            volumes.append(abs(new.true_volume - new.volume) <= half)
            dice = fitted.intercept + fitted.slope * new.agreement
            ranges.append(abs(new.dice - dice) <= fitted.dice_margin)
    # 20 of 22 in closed form
    assert np.mean(volumes) == pytest.approx(20 / 22, abs=0.02)
    assert np.mean(ranges) == pytest.approx(20 / 22, abs=0.03)


def test_predicted_dice_has_no_bias_and_follows_the_truth():
    rng = np.random.default_rng(2)
    measures = draw(rng, 29)
    lines = fit_lines({"organ": measures})
    new = draw(rng, 500)
    predicted = np.array([lines["organ"](measure.agreement) for measure in new])
    true = np.array([measure.dice for measure in new])
    agreement = np.array([measure.agreement for measure in new])
    assert (agreement - true).mean() > 0.15
    assert abs((predicted - true).mean()) < 0.02
    assert np.corrcoef(predicted, true)[0, 1] > 0.9
    # the mean of the scans that it was fitted on is met
    fitted = [lines["organ"](measure.agreement) for measure in measures]
    assert np.mean(fitted) == pytest.approx(np.mean([measure.dice for measure in measures]))


@pytest.mark.parametrize("count", [3, 9, 40])
def test_a_slope_counts_as_much_as_its_cases(count):
    measures = draw(np.random.default_rng(3), count)
    x, y = np.array([(measure.agreement, measure.dice) for measure in measures]).T
    fitted_slope = np.polyfit(x, y, 1)[0]
    pooled = (count * fitted_slope + PRIOR_CASES) / (count + PRIOR_CASES)
    expected = (count * fitted_slope + PRIOR_CASES * pooled) / (count + PRIOR_CASES)
    line = fit_lines({"organ": measures})["organ"]
    assert line.slope == pytest.approx(expected)
    assert line.intercept == pytest.approx(y.mean() - expected * x.mean())


def test_a_class_whose_passes_always_agree_takes_its_mean():
    measures = [
        dataclasses.replace(measure, agreement=1.0, dice=dice)
        for measure, dice in zip(
            draw(np.random.default_rng(4), 4), (0.5, 0.7, 0.6, 0.6), strict=True
        )
    ]
    assert fit_lines({"organ": measures})["organ"](1.0) == pytest.approx(0.6)
    assert held_out_dice({"organ": measures})["organ"] == pytest.approx(
        [1.9 / 3, 1.7 / 3, 0.6, 0.6]
    )


def test_of_a_subject_with_several_scans_the_worst_counts():
    measures = draw(np.random.default_rng(5), 12)
    pairs = [
        dataclasses.replace(measure, subject=f"subject_{number // 2}")
        for number, measure in enumerate(measures)
    ]
    errors = [
        abs(measure.true_volume - measure.volume)
        / volume_scale(measure.volume, measure.spread, "ml")
        for measure in measures
    ]
    worst = [max(errors[number : number + 2]) for number in range(0, 12, 2)]
    fitted = fit_parts({"organ": pairs}, "ml")["organ"]
    assert fitted.volume_factor == pytest.approx(conformal_quantile(worst))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "network").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def calibration():
    measures = draw(np.random.default_rng(6), 10)
    return make_calibration(
        SETTINGS, "abc", 0.5, "validation", {"2": measures}, {"whole": measures}, "ml"
    )


def test_a_calibration_is_read_as_it_was_written(run, calibration):
    assert read_calibration(run, module.Calibration) is None
    file = write_calibration(run, calibration)
    assert file == run / "network" / "calibration.json"
    assert read_calibration(run, module.Calibration) == calibration
    content = json.loads(file.read_text())
    write_checked(file, {**content, "of_a_later_version": 1})
    assert read_calibration(run, module.Calibration) == calibration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("passes", "20"),
        ("level", 1.5),
        ("volumes_in", "l"),
        ("classes", {"2": {"slope": 1.0}}),
        ("regions", None),
    ],
)
def test_a_damaged_calibration_is_refused(run, calibration, key, value):
    file = write_calibration(run, calibration)
    content = json.loads(file.read_text())
    write_checked(file, {**content, key: value})
    with pytest.raises(DataError, match=rf"damaged \(.*'{key}.*make it again: `selfvox calibrate"):
        read_calibration(run, module.Calibration)


def test_an_estimate_is_the_line_and_the_scaled_spread(calibration):
    fitted = calibration.classes["2"]
    entry = {"class": 2, "agreement": 0.9, "volume": 10.0, "spread": 0.5}
    estimate = calibration.estimate(entry)
    dice = fitted.intercept + fitted.slope * 0.9
    assert estimate[:3] == pytest.approx(
        (dice, dice - fitted.dice_margin, min(1, dice + fitted.dice_margin))
    )
    half = fitted.volume_factor * (0.5 + 0.05 * 10 + 0.001)
    assert estimate[3:] == pytest.approx((10 - half, 10 + half))
    assert calibration.estimate({**entry, "class": 3}) is None
    assert calibration.estimate({"class": 2, "agreement": 1.0, "volume": 1.0}) is None
    assert calibration.estimate({**entry, "agreement": 99}).dice == 1


@pytest.mark.parametrize(
    ("change", "sha256", "overlap", "reason"),
    [
        ({}, "abc", 0.5, None),
        ({"passes": 50}, "abc", 0.5, None),
        ({}, "def", 0.5, "of other weights"),
        ({"dropout": Dropout(0.2, 0.0, "element", 0)}, "abc", 0.5, "for dropout of 0.3 of the"),
        ({"vote": "mean"}, "abc", 0.5, "for a majority vote"),
        ({"mirror": True}, "abc", 0.5, "calibrated without mirrored scans"),
        ({}, "abc", 0.25, "an overlap of 0.5"),
    ],
)
def test_other_predictions_than_the_calibrated_ones_are_named(
    calibration, change, sha256, overlap, reason
):
    mismatch = calibration.mismatch(dataclasses.replace(SETTINGS, **change), sha256, overlap)
    assert (mismatch is None) == (reason is None)
    assert reason is None or reason in mismatch
