"""Intervals over random effects, against textbook analysis of variance and dense matrices."""

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


def test_the_error_of_complete_studies_is_that_of_the_analysis_of_variance():
    values = simulate(np.random.default_rng(1), (2, 5, 12), (1.0, 1.0, 1.0, 0.5))
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
    # each factor's mean square has the residual's variance, so it is there three times
    parts = np.array([*squares[:3], -2 * squares[3]]) / values.size
    error = error_of_mean(values)
    assert error.error == pytest.approx(math.sqrt(parts.sum()))
    assert error.df == pytest.approx(parts.sum() ** 2 / (parts**2 / freedom).sum())
    assert error.over == ("pre-training", "draw", "subject")
    reach = stats.t.ppf(0.975, error.df) * error.error
    assert error.interval(3.0) == pytest.approx((3 - reach, 3 + reach))


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
    assert error_of_mean(values) == error_of_mean(values[:1])
    values[:, 1:] = np.nan
    assert error_of_mean(values) is None


def test_draws_and_subjects_that_differ_less_than_by_chance_have_no_negative_variance():
    values = np.random.default_rng(0).normal(size=(1, 3, 8))
    for axis in (1, 2):
        values = values - values.mean(axis, keepdims=True)
    of_residual = (values**2).sum() / (2 * 7)
    error = error_of_mean(values)
    assert error.error == pytest.approx(math.sqrt(of_residual / 24))
    assert error.df >= 2


def test_differences_that_do_not_vary_have_no_error():
    error = error_of_mean(np.zeros((1, 3, 8)))
    assert error.interval(0.0) == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 3, 12), (1, 3, 85), (3, 5, 40), (1, 10, 40)])
def test_intervals_contain_the_true_difference_as_often_as_they_say(shape):
    rng = np.random.default_rng(0)
    studies = 400
    right = 0
    for _ in range(studies):
        differences = simulate(
            rng, shape, (0.0 if shape[0] == 1 else DEVIATIONS[0], *DEVIATIONS[1:])
        )
        low, high = error_of_mean(differences).interval(differences.mean())
        right += low <= 0 <= high
    assert 0.93 <= right / studies <= 0.97


def test_simultaneous_intervals_are_all_right_with_95_percent():
    assert simultaneous(1) == 0.95
    assert simultaneous(4) ** 4 == pytest.approx(0.95)
