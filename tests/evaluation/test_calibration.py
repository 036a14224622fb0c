"""Calibration scores agree with loops, closed forms and other implementations."""

import csv
import math

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageSequence
from scipy import stats
from sklearn.metrics import log_loss

import selfvox
from selfvox.evaluation import calibration as of
from selfvox.evaluation.pairs import LabelPair

from ..conftest import blob, make_run


def drawn(honest=True, classes=3, voxels=40_000, seed=0):
    """Probabilities (class, voxel), and truths drawn from them or from a flatter version."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), voxels)
    true = p if honest else 0.5 * p + 0.5 / classes
    truth = (rng.random(voxels)[:, None] > true.cumsum(1)).sum(1)
    return p.T, truth.clip(max=classes - 1)


def naive_ece(p, truth, bins=15):
    confidence = p.max(0)
    right = p.argmax(0) == truth
    total = 0.0
    for number in range(bins):
        inside = (confidence >= number / bins) & (
            (confidence < (number + 1) / bins) | (number == bins - 1)
        )
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


@pytest.mark.parametrize("honest", [True, False])
def test_calibration_error_equals_a_loop_and_is_small_for_honest_probabilities(honest):
    p, truth = drawn(honest)
    found = of.expected_calibration_error(of.reliability(p, truth))
    assert found == pytest.approx(naive_ece(p, truth))
    assert (found < 0.01) == honest


def test_tables_of_parts_add_up_to_that_of_the_whole():
    p, truth = drawn()
    parts = of.reliability(p[:, :999], truth[:999]) + of.reliability(p[:, 999:], truth[999:])
    assert np.allclose(parts, of.reliability(p, truth))


def test_brier_and_likelihood_equal_other_implementations():
    p, truth = drawn(voxels=500)
    one_hot = np.eye(3)[truth].T
    assert of.brier(p, truth) == pytest.approx(
        np.mean([((a - b) ** 2).sum() for a, b in zip(p.T, one_hot.T, strict=True)])
    )
    assert of.negative_log_likelihood(p, truth) == pytest.approx(
        log_loss(truth, np.clip(p, 1e-7, None).T), rel=1e-3
    )


def test_a_perfect_and_an_ignorant_prediction_have_known_scores():
    truth = np.array([0, 1, 2, 1])
    perfect = np.eye(3)[truth].T
    ignorant = np.full((3, 4), 1 / 3)
    assert of.brier(perfect, truth) == pytest.approx(0)
    assert of.brier(ignorant, truth) == pytest.approx(2 / 3)
    assert of.negative_log_likelihood(ignorant, truth) == pytest.approx(math.log(3))


def test_risk_falls_with_a_trust_that_knows_and_the_whole_keeps_its_mean():
    dice = np.array([0.9, 0.2, 0.7, 0.5])
    known = of.risk_coverage(dice, dice)
    opposite = of.risk_coverage(-dice, dice)
    assert np.allclose(known, [0.1, 0.2, 0.3, 0.425])
    assert known.mean() < opposite.mean()
    assert known[-1] == opposite[-1] == pytest.approx((1 - dice).mean())


def test_false_voxels_far_away_do_not_make_a_network_look_honest():
    """27 of them took the error from .043 to .002 when the prediction drew the box."""
    truth = np.zeros((60, 60, 60), int)
    truth[5:15, 5:15, 5:15] = 1
    p = np.where(truth, 0.9, 0.05)
    p[4, 5:15, 5:15] = 0.95
    honest, _ = of.measure_calibration(np.stack([1 - p, p]), truth)
    p[50:53, 50:53, 50:53] = 0.95
    with_false, _ = of.measure_calibration(np.stack([1 - p, p]), truth)
    assert honest["ece"] > 0.01
    assert with_false == honest


def test_regions_of_one_scan_are_measured_in_one_box():
    truth = np.zeros((40, 30), int)
    truth[20, 10:14] = 1
    truth[20, 12] = 2  # a box of its own would be smaller
    p = np.stack([np.where(truth > 0, 0.8, 0.1), np.where(truth == 2, 0.7, 0.2)])
    scores, table = of._measure_regions(p, truth, {"whole": (1, 2), "core": (2,)})
    voxels = 11 * 14
    assert table[0].sum() == 2 * voxels
    box = (slice(15, 26), slice(5, 19))
    expected = []
    for region, inside in zip(p, (truth[box] > 0, truth[box] == 2), strict=True):
        with_complement = np.stack([1 - region[box], region[box]]).reshape(2, -1)
        expected.append(naive_ece(with_complement, inside.ravel()))
    assert scores["ece"] == pytest.approx(np.mean(expected))


def test_a_mean_over_the_scans_has_the_interval_of_student():
    rng = np.random.default_rng(0)
    scores = [dict.fromkeys(of.SCORE_NAMES, value) for value in rng.random(6)]
    values = [of_scan["ece"] for of_scan in scores]
    mean, reach = of.summary(scores)["ece"]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - reach, mean + reach) == pytest.approx((interval.low, interval.high))
    undefined = {name: math.nan for name in of.SCORE_NAMES}
    assert np.isnan(of.summary([undefined])["ece"]).all()
    assert of.summary([undefined, *scores])["ece"] == (mean, reach)


def test_only_the_box_around_the_truth_counts():
    truth = np.zeros((60, 8), int)
    truth[20:24, 3] = 1
    p = np.stack([np.where(truth, 0.4, 0.9), np.where(truth, 0.6, 0.1)])
    small, _ = of.measure_calibration(p, truth)
    padded = [(0, 0), (500, 500), (0, 0)]
    large, _ = of.measure_calibration(np.pad(p, padded, mode="edge"), np.pad(truth, padded[1:]))
    assert large == pytest.approx(small, nan_ok=True)


@pytest.mark.parametrize("corner", [0, 20])
def test_the_box_has_a_margin_as_far_as_the_scan_reaches(corner):
    truth = np.zeros((40, 30), int)
    truth[corner, 7:9] = 1
    p = np.stack([np.full(truth.shape, 0.9), np.full(truth.shape, 0.1)])
    _, table = of.measure_calibration(p, truth)
    rows = min(corner, of.MARGIN) + 1 + of.MARGIN
    assert table[0].sum() == rows * (2 + 2 * of.MARGIN)


@pytest.mark.parametrize(
    ("trust", "text"),
    [
        ((0.9, 0.5, 0.1), "of 3 scans: correlation 1.00"),
        ((0.1, 0.5, 0.9), "of 3 scans: correlation -1.00"),
        ((0.5, 0.5, 0.5), "of 3 scans: no correlation, since one of them is the same for all"),
    ],
)
def test_trust_is_correlated_with_dice_over_the_scans(tmp_path, capsys, trust, text):
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 2:4, 1:3] = 1
    probabilities = np.stack([1 - 0.8 * label, 0.8 * label], -1).astype(np.float32)
    pairs = {}
    for number in range(3):
        file = tmp_path / f"case_{number}.nii.gz"
        nib.Nifti1Image(label, np.eye(4)).to_filename(file)
        nib.Nifti1Image(probabilities, np.eye(4)).to_filename(
            tmp_path / f"case_{number}_probabilities.nii.gz"
        )
        pairs[f"case_{number}"] = LabelPair(file, file)
    lines = ["case,trust", *(f"case_{number},{value}" for number, value in enumerate(trust))]
    (tmp_path / "review.csv").write_text("\n".join(lines) + "\n")
    dice = {"case_0": 0.8, "case_1": 0.6, "case_2": 0.4}
    of.report_calibration(tmp_path, pairs, [0, 1], dice, None)
    assert text in capsys.readouterr().err
    of.report_calibration(tmp_path, pairs, [0, 1], {"case_0": 0.8, "case_1": 0.6}, None)
    assert "scans:" not in capsys.readouterr().err


def test_evaluate_measures_the_probabilities_next_to_the_labels(tmp_path, capsys):
    scans = tmp_path / "scans"
    truth = tmp_path / "truth"
    scans.mkdir()
    truth.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        nib.Nifti1Image(blob((20, 18, 16), number), np.eye(4)).to_filename(
            scans / f"s{number}.nii.gz"
        )
        label = rng.integers(0, 3, (20, 18, 16)).astype(np.uint8)
        nib.Nifti1Image(label, np.eye(4)).to_filename(truth / f"s{number}.nii.gz")
    run = make_run(tmp_path / "run")
    out = tmp_path / "predictions"
    selfvox.predict(run, scans, out=out, probabilities=True, passes=3, encoder_dropout=0.3)
    selfvox.evaluate(out, truth, out=tmp_path / "scores.csv")
    printed = capsys.readouterr().err
    assert "probabilities against the truth: ece" in printed
    assert "correlation" in printed
    with (tmp_path / "scores_calibration.csv").open() as lines:
        rows = {row["case"]: row for row in csv.DictReader(lines)}
    assert sorted(rows) == ["s0", "s1", "s2"]
    p = np.moveaxis(np.asarray(nib.load(out / "s1_probabilities.nii.gz").dataobj), -1, 0).reshape(
        3, -1
    )
    t = np.asarray(nib.load(truth / "s1.nii.gz").dataobj).ravel()
    assert float(rows["s1"]["ece"]) == pytest.approx(naive_ece(p, t), abs=1e-4)
    assert (tmp_path / "scores_calibration.png").stat().st_size > 1000


def test_probabilities_of_pictures_are_measured_too(tmp_path):
    for folder in ("pictures", "truth"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    truths = {}
    for number in range(2):
        Pillow.fromarray(blob((40, 36), number).astype(np.uint8)).save(
            tmp_path / "pictures" / f"p{number}.png"
        )
        truths[number] = rng.integers(0, 3, (40, 36)).astype(np.uint8)
        Pillow.fromarray(truths[number]).save(tmp_path / "truth" / f"p{number}.png")
    run = make_run(tmp_path / "run", spatial_dims=2, crop=32)
    out = tmp_path / "predictions"
    selfvox.predict(run, tmp_path / "pictures", out=out, probabilities=True)
    selfvox.evaluate(out, tmp_path / "truth", out=tmp_path / "scores.csv")
    with (tmp_path / "scores_calibration.csv").open() as lines:
        rows = {row["case"]: row for row in csv.DictReader(lines)}
    with Pillow.open(out / "p1_probabilities.tif") as picture:
        p = np.stack([np.array(page) for page in ImageSequence.Iterator(picture)]).reshape(3, -1)
    assert sorted(rows) == ["p0", "p1"]
    assert float(rows["p1"]["ece"]) == pytest.approx(naive_ece(p, truths[1].ravel()), abs=1e-4)


def test_maps_that_are_not_of_the_classes_are_left_out_and_reported(tmp_path, capsys):
    folder = tmp_path / "predictions"
    folder.mkdir()
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 2:4, 1:3] = 1
    nib.Nifti1Image(label, np.eye(4)).to_filename(folder / "a.nii.gz")
    maps = np.random.default_rng(0).random((6, 5, 4, 2), np.float32)
    nib.Nifti1Image(maps, np.eye(4)).to_filename(folder / "a_probabilities.nii.gz")
    pair = LabelPair(folder / "a.nii.gz", folder / "a.nii.gz")
    of.report_calibration(folder, {"a": pair}, [0, 1], {"a": 1.0}, None)
    of.report_calibration(folder, {"a": pair}, [0, 1, 2], {"a": 1.0}, None)
    printed = capsys.readouterr().err
    assert "add up to 1" in printed
    assert "not 3 maps of (6, 5, 4)" in printed
