"""Statistics of a study: bootstrap intervals, paired differences, labels saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from selfvox.studies import class_scores
from selfvox.studies.results import Result

DRAWS = 5000  # of the bootstrap
WIDTH = 160  # columns that a row needs
EQUAL, FLAT = "equal compute", "3D minus 2D"


def paired(group: Sequence[Result], twins: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Each run with its twin's run of the same seed, and of the same pre-training seed where the twin has some.

    Pairs that were not scored on one case in common are left out.
    """
    twin = {(result.seed, result.pretrain_seed): result for result in twins}
    found = (
        (result, twin.get((result.seed, result.pretrain_seed), twin.get((result.seed, None))))
        for result in group
    )
    return [
        (result, other)
        for result, other in found
        if other and set(result.cases()) & set(other.cases())
    ]


def _grid(pairs: Sequence[tuple[Result, Result]]) -> tuple[list[int | None], list[int]]:
    """The pre-training seeds and the seeds that occur."""
    runs = [result for result, _ in pairs]
    return list(dict.fromkeys(run.pretrain_seed for run in runs)), list(
        dict.fromkeys(run.seed for run in runs)
    )


def _of_cases(
    pairs: Sequence[tuple[Result, Result]], name: str
) -> tuple[np.ndarray, tuple[float, float]]:
    """Mean differences of the runs, and their interval, of a score that is a mean over cases."""
    differences, subjects = by_case(pairs, name)
    means = [np.nanmean(run) for seeds in differences for run in seeds if not np.isnan(run).all()]
    return np.array(means), bootstrap(differences, subjects)


def by_case(pairs: Sequence[tuple[Result, Result]], name: str) -> tuple[np.ndarray, list[str]]:
    """Differences of each run to its twin's, case by case.

    Returns:
        (pre-training seed, seed, case), nan where a run is not there yet; and the subject of each case.
    """
    first, second = _grid(pairs)
    scores = [(result, result.of_case(name), twin.of_case(name)) for result, twin in pairs]
    cases = sorted({case for _, own, other in scores for case in own.keys() & other.keys()})
    found = np.full((len(first), len(second), len(cases)), np.nan)
    for result, own, other in scores:
        found[first.index(result.pretrain_seed), second.index(result.seed)] = [
            own.get(case, np.nan) - other.get(case, np.nan) for case in cases
        ]
    return found, _subjects(pairs, cases)


def _subjects(pairs: Sequence[tuple[Result, Result]], cases: Sequence[str]) -> list[str]:
    known = pairs[0][0].subjects
    return [known.get(case, case) for case in cases]


def _of_answers(pairs: Sequence[tuple[Result, Result]]) -> tuple[np.ndarray, tuple[float, float]]:
    """The same of a score that is none of single cases: it is computed anew of each draw of them."""
    first, second = _grid(pairs)
    answers = [(result, result.answers(), twin.answers()) for result, twin in pairs]
    cases = sorted({case for _, own, other in answers for case in own.keys() & other.keys()})
    classes = 1 + max(max(pair) for _, *both in answers for each in both for pair in each.values())
    rng = np.random.default_rng(0)
    drawn = _drawn(rng, (len(first), len(second)), _subjects(pairs, cases), DRAWS)
    drawn = [
        np.vstack([np.ones(each.shape[1]), each]) for each in drawn
    ]  # what is there, before what is drawn
    by_run, total, weight = [], np.zeros(1 + DRAWS), np.zeros(1 + DRAWS)
    for result, own, other in answers:
        there = np.array([case in own and case in other for case in cases])
        both = []
        for each in (own, other):
            of_case = np.zeros((len(cases), classes**2))
            of_case[there] = class_scores.counts(
                [each[case] for case in np.array(cases)[there]], classes
            )
            both.append(
                class_scores.scores(result.key, (drawn[2] @ of_case).reshape(-1, classes, classes))
            )
        difference = both[0] - both[1]
        by_run.append(difference[0])
        times = (
            drawn[0][:, first.index(result.pretrain_seed)] * drawn[1][:, second.index(result.seed)]
        )
        times = np.where(np.isnan(difference), 0, times)
        total, weight = total + times * np.nan_to_num(difference), weight + times
    means = (total[1:] / np.maximum(weight[1:], 1))[weight[1:] > 0]
    low, high = np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
    return np.array(by_run), (float(low), float(high))


def _drawn(
    rng: np.random.Generator, seeds: Sequence[int], subjects: Sequence[str], draws: int
) -> list[np.ndarray]:
    """How often each seed and each case is drawn, when as many seeds and subjects are drawn as there are.

    The eyes or sessions of one subject are alike, so that they are drawn together.

    Args:
        rng: draws.
        seeds: how many there are, for each kind of seed.
        subjects: the subject of each case.
        draws: how often.

    Returns:
        (draws, count) for each kind of seed, and for the cases.
    """
    place = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
    *of_seeds, of_subjects = (
        rng.multinomial(size, [1 / size] * size, draws) for size in (*seeds, len(place))
    )
    return [*of_seeds, of_subjects[:, [place[subject] for subject in subjects]]]


def bootstrap(
    differences: np.ndarray, subjects: Sequence[str] | None = None, draws: int = DRAWS
) -> tuple[float, float]:
    """95 % interval of the mean of (pre-training seed, seed, case); seeds and subjects are drawn anew, independently.

    Args:
        differences: nan where one is not there.
        subjects: of the cases; default: each is its own.
        draws: how often.
    """
    *seeds, cases = differences.shape
    # the mean over what is drawn is a weighted one
    drawn = _drawn(np.random.default_rng(0), seeds, subjects or list(map(str, range(cases))), draws)
    there = ~np.isnan(differences)
    sums, counts = (
        np.einsum("np,ns,nc,psc->n", *drawn, values, optimize=True)
        for values in (np.nan_to_num(differences), there)
    )
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
    return float(low), float(high)


def labels_at(score: float, curve: Mapping[int, float]) -> float | None:
    """The fewest labels with which a curve of score by labels, straight between its points, reaches a score.

    None where the score lies below the curve's first point or above all of it.
    """
    points = sorted(curve.items())
    if not points or score < points[0][1]:
        return None
    before = points[0]
    for labels, reached in points:
        if reached >= score:
            rise = reached - before[1]
            share = (score - before[1]) / rise if rise > 0 else 1.0
            return before[0] + share * (labels - before[0])
        before = (labels, reached)
    return None
