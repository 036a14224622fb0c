"""Intervals over random effects, against textbook analysis of variance and drawn variances."""

import math

import numpy as np
import pytest
from scipy import stats

from selfvox.studies.random_effects import error_of_mean, simultaneous

DEVIATIONS = (0.006, 0.012, 0.015, 0.02)  # pre-training, draw, subject, residual; in Dice


def simulate(rng, shape, deviations=DEVIATIONS):
    pretrainings, draws, subjects = shape
    axes = ((pretrainings, 1, 1), (1, draws, 1), (1, 1, subjects), shape)
    return sum(
        deviation * rng.normal(size=size) for deviation, size in zip(deviations, axes, strict=True)
    )


def mean_squares_of(values):
    """The mean squares of a complete study and their degrees of freedom, by textbook formulas."""
    mean = values.mean()
    squares, freedom = [], []
    residual = values - mean
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        effects = values.mean(others, keepdims=True) - mean
        levels = values.shape[axis]
        squares.append((effects**2).sum() * values.size / levels / (levels - 1))
        freedom.append(levels - 1)
        residual = residual - effects
    freedom.append(values.size - 1 - sum(freedom))
    squares.append((residual**2).sum() / freedom[-1])
    return squares, freedom


def test_the_error_of_complete_studies_is_that_of_the_analysis_of_variance():
    values = simulate(np.random.default_rng(1), (2, 5, 12), (1.0, 1.0, 1.0, 0.5))
    squares, _ = mean_squares_of(values)
    error = error_of_mean(values)
    # each factor's mean square has the residual's variance, so it is there three times
    assert error.error == pytest.approx(math.sqrt((sum(squares[:3]) - 2 * squares[3]) / 120))
    assert error.over == ("pre-training", "draw", "subject")


def test_the_interval_is_that_of_drawn_variances():
    rng = np.random.default_rng(1)
    values = simulate(rng, (2, 5, 12), (0.2, 1.0, 1.0, 2.0))
    squares, freedom = mean_squares_of(values)
    drawn = [
        square * count / rng.chisquare(count, 400_000)
        for square, count in zip(squares, freedom, strict=True)
    ]
    # a factor's variance is its mean square without the residual's, and not below 0
    variance = sum((of_factor - drawn[3]).clip(min=0) for of_factor in drawn[:3]) + drawn[3]
    distances = np.abs(np.sqrt(variance / 120) * rng.normal(size=variance.size))
    error = error_of_mean(values)
    for confidence, tolerance in ((0.5, 0.01), (0.95, 0.02), (simultaneous(4), 0.04)):
        low, high = error.interval(3.0, confidence)
        assert (low + high) / 2 == pytest.approx(3)
        assert high - 3 == pytest.approx(np.quantile(distances, confidence), rel=tolerance)
        assert error.confidence_at(high - 3) == pytest.approx(confidence)


@pytest.mark.parametrize("levels", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.95, simultaneous(4)])
def test_the_interval_over_one_factor_is_that_of_student(levels, confidence):
    of_draw = np.random.default_rng(0).normal(size=levels)
    # subjects that do not differ
    error = error_of_mean(np.repeat(of_draw[None, :, None], 12, axis=2))
    reach = stats.t.ppf((1 + confidence) / 2, levels - 1) * of_draw.std(ddof=1) / math.sqrt(levels)
    _, high = error.interval(0.0, confidence)
    assert high == pytest.approx(reach, rel=1e-3)


def test_where_runs_are_missing_the_variances_are_those_of_dense_matrices():
    values = simulate(np.random.default_rng(5), (3, 4, 6), (1.0, 1.0, 1.0, 0.5))
    values[0, 1] = values[2, 3] = values[:, 2, 4] = np.nan
    place = np.argwhere(~np.isnan(values))
    observed = values[~np.isnan(values)]
    total = len(observed)
    mean = np.full((total, total), 1 / total)
    same = [(place[:, None, axis] == place[None, :, axis]).astype(float) for axis in range(3)]
    same.append(np.eye(total))
    # quadratic forms of the sums of squares: projections on the means of each level
    forms = [one / one.sum(1, keepdims=True) - mean for one in same]
    forms[3] = forms[3] - sum(forms[:3])
    expected = np.array([[np.trace(form @ of_effect) for of_effect in same] for form in forms])
    variances = np.linalg.solve(expected, [observed @ form @ observed for form in forms])
    assert (variances > 0).all()
    variance = sum(v * one.sum() for v, one in zip(variances, same, strict=True)) / total**2
    assert error_of_mean(values).error == pytest.approx(math.sqrt(variance))


def test_a_factor_with_one_level_has_no_interval():
    values = simulate(np.random.default_rng(0), (2, 3, 8))
    assert error_of_mean(values[:, :1]) is None
    assert error_of_mean(values[:, :, :1]) is None
    assert error_of_mean(values[:1]).over == ("draw", "subject")
    values[1] = np.nan  # the second pre-training has not begun
    for ours, theirs in zip(error_of_mean(values), error_of_mean(values[:1]), strict=True):
        assert np.array_equal(ours, theirs)
    values[:, 1:] = np.nan
    assert error_of_mean(values) is None


def test_draws_and_subjects_that_differ_less_than_by_chance_have_no_negative_variance():
    values = np.random.default_rng(0).normal(size=(1, 3, 8))
    for axis in (1, 2):
        values = values - values.mean(axis, keepdims=True)
    of_residual = (values**2).sum() / (2 * 7)
    error = error_of_mean(values)
    assert error.error == pytest.approx(math.sqrt(of_residual / 24))


def test_differences_that_do_not_vary_have_no_error():
    error = error_of_mean(np.zeros((1, 3, 8)))
    assert error.interval(0.0) == (0.0, 0.0)


def coverage(shape, deviations, intervals=1, studies=400):
    """In which share of simulated studies all intervals contain the true difference, 0."""
    rng = np.random.default_rng(0)
    confidence = simultaneous(intervals)
    right = 0
    for _ in range(studies):
        values = [simulate(rng, shape, deviations) for _ in range(intervals)]
        right += all(error_of_mean(one).confidence_at(one.mean()) <= confidence for one in values)
    return right / studies


@pytest.mark.parametrize("draws", [3, 5, 10])
@pytest.mark.parametrize("subjects", [12, 40, 85])
def test_intervals_contain_the_true_difference_as_often_as_they_say(draws, subjects):
    # 0.98: of few scores, variances that cannot be negative are estimated too high
    highest = 0.98 if subjects == 12 else 0.975
    assert 0.93 <= coverage((1, draws, subjects), (0.0, *DEVIATIONS[1:])) <= highest


@pytest.mark.parametrize("draws", [3, 10])
def test_intervals_over_pretrainings_that_differ_most_are_not_too_narrow(draws):
    assert coverage((2, draws, 85), (0.02, 0.01, 0.01, 0.02)) >= 0.93


def test_simultaneous_intervals_of_three_draws_are_not_too_narrow():
    assert 0.93 <= coverage((1, 3, 85), (0.0, *DEVIATIONS[1:]), intervals=4) <= 0.98


def test_simultaneous_intervals_are_all_right_with_95_percent():
    assert simultaneous(1) == 0.95
    assert simultaneous(4) ** 4 == pytest.approx(0.95)
