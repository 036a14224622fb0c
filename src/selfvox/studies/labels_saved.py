"""How many labels a method saves: how many more its twin needs for the same score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from selfvox.studies.convergence import has_curve, late_change
from selfvox.studies.random_effects import CONFIDENCE, error_of_mean
from selfvox.studies.results import Result
from selfvox.studies.statistics import as_array, contributions, pair_runs

GRID = 48  # numbers of labels that the interval is searched at, evenly spaced in their logarithm


class LabelsSaved(NamedTuple):
    """The labels that a method saves, or why nothing can be said."""

    estimate: float  # -inf and inf: outside of the twin's curve; nan: unknown
    least: float  # the ends of the twin's curve, as labels saved
    most: float
    low: float | None = None  # 95 % interval; None: no limit within the curve
    high: float | None = None
    has_interval: bool = False
    reason: str = ""  # of an unknown number

    def __str__(self) -> str:
        if math.isnan(self.estimate):
            return f"unknown: {self.reason}"
        if self.estimate == math.inf:
            return f"more than {self.most:+g}"
        if self.estimate == -math.inf:
            return f"fewer than {self.least:+g}"
        return f"{self.estimate:+.1f}"


def labels_saved(
    group: Sequence[Result], twins: Mapping[int, Sequence[Result]], name: str
) -> LabelsSaved:
    """How many more labels the twin needs than a method, for the score of the method.

    The runs of the method are compared with those of the twin with the same seeds, at every number
    of labels where the twin has all of these. The curve of the twin's mean score does not sink
    (isotonic regression) and is straight between its points in the logarithm of the labels. The
    score that is looked up on it is the curve's own at the method's number of labels plus the
    paired difference there, so that no difference saves no labels.

    The interval inverts that of the difference (Fieller 1954): it has all numbers of labels at
    which the twin, between two points the weighted mean of both, does not differ from the method.

    Args:
        group: runs of the method at one number of labels.
        twins: runs of the twin by number of labels.
        name: class or region; ignored where scans are classified.
    """
    labels = group[0].labels
    matched = _matched_runs(group, twins)
    counts = sorted(matched)
    if labels not in counts or len(counts) < 2:
        return _unknown("the baseline has its seeds at one number of labels only")
    reason = _unfinished(matched)
    if reason:
        return _unknown(reason)
    runs = [run for run, _ in pair_runs(group, matched[labels])]
    compared = itertools.chain(runs, *matched.values())
    cases = set.intersection(*(run.scored(name) for run in compared))
    if not cases:
        return _unknown("no case is scored in all runs")
    ours = [(run, contributions(run, name, cases)) for run in runs]
    theirs = {
        count: [(run, contributions(twin, name, cases)) for run, twin in pair_runs(runs, of_count)]
        for count, of_count in matched.items()
    }
    means = np.array([np.mean([scores.score for _, scores in theirs[count]]) for count in counts])
    difference = np.mean([scores.score for _, scores in ours]) - means[counts.index(labels)]
    positions = np.log(counts)
    place = _position(positions, means, counts.index(labels), float(difference))
    low, high, has_interval = _interval(
        place,
        positions,
        as_array([(run, scores.by_subject) for run, scores in ours]),
        np.array(
            [
                as_array([(run, scores.by_subject) for run, scores in theirs[count]])
                for count in counts
            ]
        ),
    )
    return LabelsSaved(
        estimate=place if math.isinf(place) else math.exp(place) - labels,
        least=counts[0] - labels,
        most=counts[-1] - labels,
        low=None if low is None else math.exp(low) - labels,
        high=None if high is None else math.exp(high) - labels,
        has_interval=has_interval,
    )


def _unfinished(twins: Mapping[int, Sequence[Result]]) -> str | None:
    """Why the twin cannot be taken for converged at all numbers of labels; None if it can."""
    changes = {count: late_change(runs) for count, runs in sorted(twins.items())}
    # of the mean of some of the runs nothing can be said
    kept = {count: all(map(has_curve, twins[count])) for count in changes}
    reasons = {
        "has not converged": [count for count, change in changes.items() if change],
        "has no metrics": [count for count in changes if not kept[count]],
        "has too few metrics to tell whether it has converged": [
            count for count, change in changes.items() if change is None
        ],
    }
    for reason, counts in reasons.items():
        if counts:
            return f"the baseline {reason} at {', '.join(map(str, counts))} labels"
    return None


def _unknown(reason: str) -> LabelsSaved:
    return LabelsSaved(estimate=math.nan, least=math.nan, most=math.nan, reason=reason)


def _matched_runs(
    group: Sequence[Result], twins: Mapping[int, Sequence[Result]]
) -> dict[int, list[Result]]:
    """The twin's runs with the seeds of the group, where it has all that it has at its labels."""
    paired = [run for run, _ in pair_runs(group, twins.get(group[0].labels, []))]
    matched = {}
    for count, of_count in twins.items():
        pairs = pair_runs(paired, of_count)
        if pairs and len(pairs) == len(paired):
            by_path = {(twin.seed, twin.pretrain_seed): twin for _, twin in pairs}
            matched[count] = list(by_path.values())
    return matched


def _position(positions: np.ndarray, means: np.ndarray, place: int, difference: float) -> float:
    """Where a curve that does not sink has the score of one of its points plus a difference.

    Where it is level, the position closest to this point.

    Args:
        positions: of the points, rising.
        means: their scores, which may sink.
        place: index of the point.
        difference: of the score to it.

    Returns:
        -inf below the curve, inf above.
    """
    curve = np.asarray(isotonic_regression(means).x)
    score = curve[place] + difference
    if score < curve[0]:
        return -math.inf
    if score > curve[-1]:
        return math.inf
    first = _crossing(positions, curve, score, int(np.searchsorted(curve, score, "left")))
    last = _crossing(positions, curve, score, int(np.searchsorted(curve, score, "right")))
    return float(np.clip(positions[place], first, last))


def _crossing(positions: np.ndarray, curve: np.ndarray, score: float, right: int) -> float:
    """Where the line that ends at a point has a score; an end of the curve without such a line."""
    if right == 0 or right == len(curve):
        return float(positions[min(right, len(curve) - 1)])
    return float(np.interp(score, curve[right - 1 : right + 1], positions[right - 1 : right + 1]))


def _interval(
    place: float, positions: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> tuple[float | None, float | None, bool]:
    """The positions on the twin's curve at which it does not differ from the method.

    Args:
        place: the estimate, which belongs to them; -inf or inf if outside.
        positions: of the points of the curve.
        ours: (pre-training, draw, subject) of the method.
        theirs: (point, pre-training, draw, subject) of the twin.

    Returns:
        The first and the last; None where it is the end of the curve, which more or fewer labels
        may follow; and whether there is an interval at all.
    """
    if error_of_mean(ours - theirs[0]) is None:
        return None, None, False
    inside = [position for position in (place,) if not math.isinf(position)]
    for position in np.unique([*np.linspace(positions[0], positions[-1], GRID), *positions]):
        right = int(np.clip(np.searchsorted(positions, position), 1, len(positions) - 1))
        left = positions[right - 1]
        share = (position - left) / (positions[right] - left)
        difference = ours - (1 - share) * theirs[right - 1] - share * theirs[right]
        error = error_of_mean(difference)
        assert error is not None
        if error.confidence_at(float(np.nanmean(difference))) <= CONFIDENCE:
            inside.append(float(position))
    first = min(inside, default=positions[-1] if place > 0 else positions[0])
    last = max(inside, default=first)
    is_open_below = place == -math.inf or (inside and first <= positions[0])
    is_open_above = place == math.inf or (inside and last >= positions[-1])
    return (
        None if is_open_below else float(first),
        None if is_open_above else float(last),
        True,
    )
