"""Temperatures are those of a closed form; sets hold the true class as often as they promise."""

import dataclasses
import json
import math

import numpy as np
import pytest

from selfvox.errors import DataError
from selfvox.runs.typed_json import write_checked
from selfvox.uncertainty.calibration_file import (
    is_calibrated,
    read_calibration,
    read_calibrations,
    write_calibration,
)
from selfvox.uncertainty.class_calibration import (
    ClassCalibration,
    ClassMeasure,
    EnsembleClassCalibration,
    class_set,
    fit_temperature,
    make_class_calibration,
    with_temperature,
)
from selfvox.uncertainty.conformal import promised_level
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.mc_dropout import Dropout

from ..conftest import make_run

CLASSES = 4
PLAIN = PassSettings()
SEVERAL = PassSettings(passes=20, dropout=Dropout(0.3, 0.0, "element", 0))


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def draw(rng, count, boast=1.0, networks=1):
    """Probabilities (network, case, class) of networks that are too sure, and the truth."""
    logits = rng.normal(0, 1.5, (count, CLASSES))
    truth = np.array([rng.choice(CLASSES, p=p) for p in softmax(logits)])
    noise = rng.normal(0, 0.7, (networks, count, CLASSES)) if networks > 1 else 0
    return softmax(boast * (logits + noise)).reshape(networks, count, CLASSES), truth


def measures(probabilities, truth, subjects=None):
    return [
        ClassMeasure(f"case_{n}", f"subject_{n if subjects is None else subjects[n]}", tuple(p), t)
        for n, (p, t) in enumerate(zip(probabilities.tolist(), truth.tolist(), strict=True))
    ]


def test_the_temperature_undoes_a_known_exaggeration():
    for boast in (0.5, 1.0, 3.0):
        (probabilities,), truth = draw(np.random.default_rng(0), 4000, boast)
        temperature = fit_temperature(probabilities, truth)
        assert temperature == pytest.approx(boast, rel=0.08)
        scaled = with_temperature(probabilities, temperature)
        (honest,), _ = draw(np.random.default_rng(0), 4000)
        assert scaled.sum(1) == pytest.approx(1)
        assert np.abs(scaled - honest).max() < 0.05
        assert np.array_equal(scaled.argmax(1), probabilities.argmax(1))


def test_a_few_scans_that_are_all_right_do_not_make_a_network_sure():
    probabilities = np.array([[0.9, 0.1]] * 4)
    # Platt's targets: 5 in 6, so that 9 ** (1 / temperature) is 5
    expected = math.log(9) / math.log(5)
    assert fit_temperature(probabilities, np.zeros(4, int)) == pytest.approx(expected, rel=1e-3)
    # always wrong: all classes are as probable, as far as the bound allows
    assert fit_temperature(probabilities, np.ones(4, int)) == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize("subjects", [3, 8, 20])
def test_sets_hold_the_true_class_as_often_as_promised_whatever_the_network_says(subjects):
    rng = np.random.default_rng(1)
    covered = []
    sizes = []
    for _ in range(400):
        (probabilities,), truth = draw(rng, subjects + 10, boast=3.0)
        made = make_class_calibration(
            PLAIN, "abc", "validation", measures(probabilities[10:], truth[10:])
        )
        ensemble = EnsembleClassCalibration((made,), ordinal=False)
        for of_case, true in zip(probabilities[:10], truth[:10], strict=True):
            chosen = ensemble.apply(of_case.tolist(), int(of_case.argmax())).set
            # as the definition says: 1 - p is a score, and a rank of the scores is the limit
            scores = sorted(1 - probabilities[10:][np.arange(subjects), truth[10:]])
            limit = scores[min(math.ceil((subjects + 1) * 0.9 - 1e-9), subjects) - 1]
            naive = {n for n in range(CLASSES) if 1 - of_case[n] <= limit + 1e-6}
            assert set(chosen) == naive | {int(of_case.argmax())}
            covered.append(true in chosen)
            sizes.append(len(chosen))
    # 400 calibrations are the independent draws
    assert np.mean(covered) > promised_level(subjects) - 3 * (0.09 / 400) ** 0.5
    assert made.level == promised_level(subjects)
    assert np.mean(sizes) < CLASSES


def test_a_cross_fitted_calibration_covers_the_mean_of_the_networks():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        probabilities, truth = draw(rng, 30, boast=2.0, networks=4)
        # each scan by one network alone
        alone = probabilities[np.arange(20) % 4, np.arange(20)]
        made = make_class_calibration(PLAIN, "abc", "folds", measures(alone, truth[:20]), 4)
        ensemble = EnsembleClassCalibration((made,) * 4, ordinal=False)
        for mean, true in zip(probabilities.mean(0)[20:], truth[20:], strict=True):
            covered.append(true in ensemble.apply(mean.tolist(), int(mean.argmax())).set)
    assert np.mean(covered) > 0.9 - 3 * (0.09 / 200) ** 0.5


def test_of_a_subject_with_several_scans_the_worst_counts():
    (probabilities,), truth = draw(np.random.default_rng(3), 16)
    pairs = measures(probabilities, truth, [n // 2 for n in range(16)])
    scores = 1 - probabilities[np.arange(16), truth]
    made = make_class_calibration(PLAIN, "abc", "validation", pairs)
    assert (made.cases, made.subjects, made.level) == (16, 8, 8 / 9)
    assert made.largest_score == pytest.approx(scores.reshape(8, 2).max(1).max())


def test_a_set_of_grades_has_no_gap_and_always_has_the_predicted_one():
    shares = [0.5, 0.05, 0.45, 0.0]
    assert class_set(shares, 0, 0.6, ordinal=False) == [0, 2]
    assert class_set(shares, 0, 0.6, ordinal=True) == [0, 1, 2]
    assert class_set(shares, 2, 0.1, ordinal=True) == [2]
    assert class_set(shares, 0, 0.0, ordinal=False) == [0]


def test_several_networks_have_the_mean_of_their_temperatures_and_limits():
    (probabilities,), truth = draw(np.random.default_rng(4), 40, boast=2.0)
    made = [
        make_class_calibration(PLAIN, "abc", "validation", measures(p, t))
        for p, t in ((probabilities[:8], truth[:8]), (probabilities[8:], truth[8:]))
    ]
    result = EnsembleClassCalibration(tuple(made), ordinal=False).apply([0.6, 0.3, 0.1, 0.0], 0)
    temperature = (made[0].temperature + made[1].temperature) / 2
    expected = with_temperature(np.array([[0.6, 0.3, 0.1, 0.0]]), temperature)[0]
    assert result.probabilities == pytest.approx(expected)
    limit = (made[0].largest_score + made[1].largest_score) / 2
    assert result.set == class_set([0.6, 0.3, 0.1, 0.0], 0, limit, ordinal=False)


@pytest.fixture
def calibration():
    (probabilities,), truth = draw(np.random.default_rng(5), 10)
    return make_class_calibration(SEVERAL, "abc", "validation", measures(probabilities, truth))


def test_a_calibration_is_read_as_it_was_written_and_refused_where_it_is_damaged(
    calibration, tmp_path
):
    run = make_run(tmp_path / "run")
    assert not is_calibrated(run)
    file = write_calibration(run, calibration)
    assert read_calibration(run, ClassCalibration) == calibration
    assert not is_calibrated(run)  # of other weights
    card = json.loads((run / "network" / "network.json").read_text())
    write_calibration(run, dataclasses.replace(calibration, network_sha256=card["sha256"]))
    assert is_calibrated(run)
    content = json.loads(file.read_text())
    for key, value in (("temperature", 0), ("largest_score", 1.5), ("format", 2), ("cases", None)):
        write_checked(file, {**content, key: value})
        with pytest.raises(DataError, match=rf"'{key}.*make it again: `selfvox calibrate"):
            read_calibration(run, ClassCalibration)


@pytest.mark.parametrize(
    ("change", "sha256", "reason"),
    [
        ({}, "abc", None),
        ({"passes": 50}, "abc", None),
        ({"vote": "mean"}, "abc", None),  # sets and temperatures are of the mean in any case
        ({}, "def", "of other weights"),
        ({"passes": 1}, "abc", "calibrated for several passes"),
        ({"dropout": Dropout(0.2, 0.0, "element", 0)}, "abc", "for dropout of 0.3 of the"),
        ({"mirror": True}, "abc", "without mirrored scans"),
    ],
)
def test_other_predictions_than_the_calibrated_ones_are_named(calibration, change, sha256, reason):
    mismatch = calibration.mismatch(dataclasses.replace(SEVERAL, **change), sha256)
    assert (mismatch is None) == (reason is None)
    assert reason is None or reason in mismatch


def test_all_networks_need_a_calibration_and_the_one_without_is_named(
    calibration, tmp_path, capsys
):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    write_calibration(runs[0], calibration)

    def read():
        return read_calibrations(runs, ClassCalibration, lambda made, number: None, "no sets")

    assert read() is None
    said = "".join(capsys.readouterr().err.split())
    assert f"nosets,since{runs[1]}hasnocalibration;`selfvoxcalibrate{runs[1]}`makesone" in said
    write_calibration(runs[1], calibration)
    assert read() == (calibration, calibration)
