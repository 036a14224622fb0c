"""Intervals of a mean over crossed random factors: pre-trainings, draws of labels and subjects."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FACTORS = ("pre-training", "draw", "subject")  # the axes of the differences
CONFIDENCE = 0.95


class MeanError(NamedTuple):
    """How far a mean may be from that of all pre-trainings, draws and subjects."""

    error: float  # standard error of the mean
    df: float  # Satterthwaite's degrees of freedom; inf where nothing varies
    over: tuple[str, ...]  # the factors that vary, which the error is about

    def interval(self, mean: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The interval of Student's t around a mean."""
        reach = float(stats.t.ppf((1 + confidence) / 2, self.df)) * self.error
        return mean - reach, mean + reach


def simultaneous(intervals: int, confidence: float = CONFIDENCE) -> float:
    """The confidence of each of several intervals that are all right with `confidence`.

    Šidák 1967: right at least as often for means of several normal variables, however they are
    related.
    """
    return float(confidence ** (1 / intervals))


def error_of_mean(differences: np.ndarray) -> MeanError | None:
    """The standard error of the mean of differences, with its degrees of freedom.

    Every difference is the mean plus effects of its pre-training, draw and subject and a residual,
    all of them random. The variances of the effects are estimated by the method of moments from
    uncorrected sums of squares (Henderson's method 1; Searle, Casella and McCulloch 1992, 5.3),
    which allows for missing runs and is the analysis of variance where none are missing. Negative
    estimates are set to 0. The degrees of freedom are Satterthwaite's (1946); if runs are missing,
    they are approximate, since the mean squares then depend on each other.

    A factor with one level gives no variance: nothing is said about other pre-trainings if there
    is one only.

    Args:
        differences: (pre-training, draw, subject), nan where one is missing.

    Returns:
        None if there is one draw or one subject, or no degree of freedom for the residual.
    """
    known = ~np.isnan(differences)
    design = _design(known.shape, known.tobytes())
    if design is None:
        return None
    mean_squares = _mean_squares(differences, known, design)
    # as sums of variances, of which none is negative
    mean_squares = design.expected @ (design.inverse @ mean_squares).clip(min=0)
    parts = design.weights * mean_squares
    variance = max(0.0, float(parts.sum()))
    if variance == 0:
        return MeanError(0.0, math.inf, design.over)
    df = variance**2 / float((parts**2 / design.freedom).sum())
    # subtracted mean squares can take it below that of the least known factor
    return MeanError(math.sqrt(variance), max(df, float(design.freedom.min())), design.over)


Group = tuple[int, ...]  # the axes whose levels tell its groups apart


class _Design(NamedTuple):
    """What follows from which runs and subjects there are, whatever their scores."""

    groups: tuple[Group, ...]  # of each factor that varies, and of the residual
    freedom: np.ndarray  # degrees of freedom of their mean squares
    expected: np.ndarray  # (mean square, variance): how much of each variance is in it on average
    inverse: np.ndarray  # (variance, mean square)
    weights: np.ndarray  # of the mean squares in the variance of the mean
    over: tuple[str, ...]


@functools.lru_cache(maxsize=32)
def _design(shape: tuple[int, ...], known_bytes: bytes) -> _Design | None:
    """The design of a study, where its mean has an error.

    Args:
        shape: pre-trainings, draws and subjects.
        known_bytes: of a boolean array of that shape: which differences there are.
    """
    known = np.frombuffer(known_bytes, bool).reshape(shape)
    levels = [int(np.count_nonzero(_counts(known, (axis,)))) for axis in range(3)]
    varying = [axis for axis in range(3) if levels[axis] > 1]
    freedom = [levels[axis] - 1 for axis in varying]
    total = int(known.sum())
    freedom.append(total - 1 - sum(freedom))
    if not {1, 2} <= set(varying) or freedom[-1] < 1:
        return None
    groups = (*((axis,) for axis in varying), (0, 1, 2))
    expected = _expected_mean_squares(known, groups, freedom)
    inverse = np.linalg.pinv(expected)
    # how much of each variance is in the variance of the mean
    shares = np.array([(_counts(known, group) ** 2).sum() for group in groups]) / total**2
    over = tuple(FACTORS[axis] for axis in varying)
    return _Design(groups, np.array(freedom), expected, inverse, shares @ inverse, over)


def _counts(known: np.ndarray, group: Group) -> np.ndarray:
    """How many differences each level of a group has; axes outside the group have length 1."""
    counts: np.ndarray = known.sum(_others(group), keepdims=True)
    return counts


def _others(group: Group) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if axis not in group)


def _mean_squares(differences: np.ndarray, known: np.ndarray, design: _Design) -> np.ndarray:
    """Mean square of each factor and of the residual."""
    values = np.where(known, differences, 0.0)
    values = np.where(known, values - values.sum() / known.sum(), 0.0)
    squares = []
    for group in design.groups:
        sums = values.sum(_others(group), keepdims=True)
        squares.append(float((sums**2 / np.maximum(_counts(known, group), 1)).sum()))
    squares[-1] -= sum(squares[:-1])
    mean_squares: np.ndarray = np.array(squares) / design.freedom
    return mean_squares


def _expected_mean_squares(
    known: np.ndarray, groups: Sequence[Group], freedom: Sequence[int]
) -> np.ndarray:
    """(mean square, variance): how much of each variance a mean square has on average."""
    total = known.sum()
    expected = np.zeros((len(groups), len(groups)))
    for row, group in enumerate(groups):
        counts = np.maximum(_counts(known, group), 1)
        for column, effect in enumerate(groups):
            joint = _counts(known, tuple(sorted({*group, *effect})))
            of_group = ((joint**2).sum(_others(group), keepdims=True) / counts).sum()
            of_mean = (_counts(known, effect) ** 2).sum() / total
            expected[row, column] = of_group - of_mean
    expected[-1] -= expected[:-1].sum(0)
    scaled: np.ndarray = expected / np.array(freedom)[:, None]
    return scaled
