"""What is said of certainty equals a naive count; intervals cover as often as they say."""

import csv

import numpy as np
import pytest
from scipy import stats

from selfvox.evaluation.certainty import correlation_interval, report_certainty, share_interval

COLUMNS = ["case", "predicted dice", "level", "a low", "a high", "a dice"]
SPREAD = ["case", "trust", "a spread low", "a spread high", "a agreement"]


def rows(count):
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 9, count)
    dice = rng.uniform(0.4, 0.9, count)
    return [
        {"case": f"s{n}", "class": 1, "name": "a", "dice": dice[n], "true_volume_ml": true[n]}
        for n in range(count)
    ]


def write(path, header, lines):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def test_bias_and_coverage_are_those_of_a_count(tmp_path, capsys):
    scored = rows(20)
    lines = []
    for n, row in enumerate(scored):
        shift = 0 if n % 4 else 5  # a quarter of the intervals lie elsewhere
        low, high = row["true_volume_ml"] - 1 + shift, row["true_volume_ml"] + 1 + shift
        lines.append([row["case"], row["dice"] + 0.1, 0.9, low, high, row["dice"] + 0.1])
    write(tmp_path / "review.csv", COLUMNS, lines)
    report_certainty(tmp_path, scored, {})
    said = " ".join(capsys.readouterr().err.split())
    assert "predicted Dice of 20 scans" in said
    assert "bias +0.100 (+0.100 to +0.100), correlation 1.00" in said
    assert "90 % intervals: 15 of 20 contain the true volume, 75 % (53 to 89 %)" in said


def test_spreads_are_not_called_intervals(tmp_path, capsys):
    scored = rows(4)
    lines = [[row["case"], 0.9, 0, 0.5, 0.9] for row in scored]
    write(tmp_path / "review.csv", SPREAD, lines)
    report_certainty(tmp_path, scored, {})
    said = " ".join(capsys.readouterr().err.split())
    assert "agreement of the passes (not calibrated) of 4 scans: mean 0.900" in said
    assert "no correlation, since one of them is the same for all" in said
    assert "spreads of the passes (no intervals): 0 of 4 contain the true volume" in said


def test_nothing_is_said_of_predictions_by_a_single_pass(tmp_path, capsys):
    report_certainty(tmp_path, rows(4), {})
    assert capsys.readouterr().err == ""


def test_the_interval_of_the_bias_is_that_of_a_t_test(tmp_path, capsys):
    scored = rows(4)
    errors = [0.1, -0.05, 0.2, 0.03]
    lines = [
        [row["case"], row["dice"] + e, 0.9, 0, 9, row["dice"] + e]
        for row, e in zip(scored, errors, strict=True)
    ]
    write(tmp_path / "review.csv", COLUMNS, lines)
    report_certainty(tmp_path, scored, {})
    low, high = stats.ttest_1samp(errors, 0).confidence_interval()
    assert f"bias +0.070 ({low:+.3f} to {high:+.3f})" in " ".join(capsys.readouterr().err.split())


def test_regions_of_other_classes_than_predicted_are_not_compared(tmp_path, capsys):
    scored = [{**row, "class": "1+2"} for row in rows(4)]
    write(tmp_path / "review.csv", COLUMNS, [[row["case"], 0.5, 0.9, 0, 9, 0.5] for row in scored])
    (tmp_path / "regions.json").write_text('{"a": [1, 2]}')
    report_certainty(tmp_path, scored, {"a": (1, 2)})
    assert "predicted Dice of 4 scans" in " ".join(capsys.readouterr().err.split())
    report_certainty(tmp_path, scored, {"a": (1, 3)})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("share", "scans"), [(0.9, 29), (0.5, 10)])
def test_intervals_of_shares_and_correlations_hold_the_truth(share, scans):
    rng = np.random.default_rng(0)
    held = []
    for count in rng.binomial(scans, share, 4000):
        low, high = share_interval(count / scans, scans)
        held.append(low <= share <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
    draws = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], (2000, scans))
    ends = [correlation_interval(np.corrcoef(draw.T)[0, 1], scans) for draw in draws]
    assert np.mean([low <= 0.7 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.02)
