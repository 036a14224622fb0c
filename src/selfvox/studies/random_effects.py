"""Intervals of a mean over crossed random factors: pre-trainings, draws of labels and subjects."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.optimize import brentq
from scipy.stats import qmc

FACTORS = ("pre-training", "draw", "subject")  # the axes of the differences
CONFIDENCE = 0.95
POINTS = 1024  # of the fiducial distribution; a power of two, as Sobol sequences need


class MeanError(NamedTuple):
    """How far a mean may be from that of all pre-trainings, draws and subjects."""

    error: float  # standard error of the mean
    variances: np.ndarray  # (point,) of the mean, drawn from their fiducial distribution
    over: tuple[str, ...]  # the factors that vary, which the error is about

    def interval(self, mean: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The interval around a mean with this confidence.

        Its distance from the mean is the quantile of a normal variable whose variance is one of
        `variances`, each as likely (generalised confidence interval, Weerahandi 1993). With one
        factor this is Student's t; with two it is the solution of Behrens and Fisher, which is
        right at least as often as it says. Satterthwaite's degrees of freedom are not: where the
        factor with the fewest levels varies most and its few levels are alike by chance, they give
        the degrees of freedom of the others.
        """
        if self.error == 0:
            return mean, mean

        def excess(distance: float) -> float:
            return self.confidence_at(distance) - confidence

        # it is between the distances of the least and of the largest variance alone
        in_errors = math.sqrt(special.chdtri(1, 1 - confidence))
        nearest = 0.99 * in_errors * math.sqrt(self.variances.min())
        farthest = 1.01 * in_errors * math.sqrt(self.variances.max())
        reach = float(brentq(excess, nearest, farthest))
        return mean - reach, mean + reach

    def confidence_at(self, distance: float) -> float:
        """The confidence of the interval that ends at this distance from the mean."""
        if self.error == 0:
            return float(distance != 0)
        return float(special.chdtr(1, distance**2 / self.variances).mean())


def simultaneous(intervals: int, confidence: float = CONFIDENCE) -> float:
    """The confidence of each of several intervals that are all right with `confidence`.

    Šidák 1967: right at least as often for means of several normal variables, however they are
    related.
    """
    return float(confidence ** (1 / intervals))


def error_of_mean(differences: np.ndarray) -> MeanError | None:
    """The standard error of the mean of differences, and what its variance may be.

    Every difference is the mean plus effects of its pre-training, draw and subject and a residual,
    all of them random. The variances of the effects are estimated by the method of moments from
    uncorrected sums of squares (Henderson's method 1; Searle, Casella and McCulloch 1992, 5.3),
    which allows for missing runs and is the analysis of variance where none are missing. Negative
    estimates are set to 0. A mean square divided by its expectation is a chi-squared variable
    divided by its degrees of freedom; solved for the expectation, it gives the variances that the
    mean may have (Weerahandi 1993). If runs are missing, this is approximate, since the mean
    squares then depend on each other.

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
    possible = mean_squares[:, None] / _relative_mean_squares(design.freedom)
    estimate, *variances = _variances_of_mean(np.column_stack([mean_squares, possible]), design)
    return MeanError(math.sqrt(estimate), np.array(variances), design.over)


def _variances_of_mean(mean_squares: np.ndarray, design: _Design) -> np.ndarray:
    """The variance of the mean (point,) that belongs to mean squares (mean square, point)."""
    variances: np.ndarray = design.shares @ (design.inverse @ mean_squares).clip(min=0)
    return variances


@functools.lru_cache(maxsize=32)
def _relative_mean_squares(freedom: tuple[int, ...]) -> np.ndarray:
    """Mean squares divided by their expectations (mean square, point), always the same points."""
    # each coordinate of the sequence has the left ends of so many equal parts of 0 to 1
    points = qmc.Sobol(len(freedom), scramble=False).random(POINTS) + 0.5 / POINTS
    half = np.array(freedom) / 2
    relative: np.ndarray = (special.gammaincinv(half, points) / half).T
    return relative


Group = tuple[int, ...]  # the axes whose levels tell its groups apart


class _Design(NamedTuple):
    """What follows from which runs and subjects there are, whatever their scores."""

    groups: tuple[Group, ...]  # of each factor that varies, and of the residual
    freedom: tuple[int, ...]  # degrees of freedom of their mean squares
    inverse: np.ndarray  # (variance, mean square): the estimates of the variances
    shares: np.ndarray  # how much of each variance is in the variance of the mean
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
    shares = np.array([(_counts(known, group) ** 2).sum() for group in groups]) / total**2
    over = tuple(FACTORS[axis] for axis in varying)
    return _Design(groups, tuple(freedom), inverse, shares, over)


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
    mean_squares: np.ndarray = np.array(squares) / np.array(design.freedom)
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
