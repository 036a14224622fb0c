"""Statistics of a study: paired differences, bootstrap intervals, labels saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selfvox.studies import class_scores
from selfvox.studies.results import Result

# the ends of an interval then vary by one per cent of its length
DRAWS = 5000  # of the bootstrap
Pairs = Sequence[tuple[Result, Result]]


class Comparison(NamedTuple):
    """How a method differs from another, run by run."""

    by_run: np.ndarray  # (pair of runs,) mean difference over the cases
    low: float  # 95 % interval of the mean of these
    high: float


def pair_runs(group: Sequence[Result], twins: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Pair each run with its twin's of the same seed.

    The pre-training seed agrees too where the twin is pre-trained itself. Pairs that were not
    scored on one case in common are left out.
    """
    by_seeds = {(twin.seed, twin.pretrain_seed): twin for twin in twins}
    pairs = []
    for result in group:
        from_scratch = by_seeds.get((result.seed, None))
        twin = by_seeds.get((result.seed, result.pretrain_seed), from_scratch)
        if twin and set(result.cases()) & set(twin.cases()):
            pairs.append((result, twin))
    return pairs


def compare(pairs: Pairs, name: str) -> Comparison:
    """The difference of the runs to their twins in one class or region, with its interval.

    Args:
        pairs: at least one, of a method and another at the same number of labels.
        name: ignored where scans are classified, which have one score.
    """
    if pairs[0][0].answers():
        return _compare_answers(pairs)
    differences, subjects = by_case(pairs, name)
    runs = [run for seeds in differences for run in seeds if not np.isnan(run).all()]
    return Comparison(
        np.array([np.nanmean(run) for run in runs]), *bootstrap(differences, subjects)
    )


def by_case(pairs: Pairs, name: str) -> tuple[np.ndarray, list[str]]:
    """Differences of each run to its twin, case by case.

    Returns:
        (pre-training seed, seed, case), nan for missing runs; and the subject of each case.
    """
    pretrain_seeds, seeds = _seeds(pairs)
    scores = [(result, result.of_case(name), twin.of_case(name)) for result, twin in pairs]
    cases = _common_cases([(ours, theirs) for _, ours, theirs in scores])
    differences = np.full((len(pretrain_seeds), len(seeds), len(cases)), np.nan)
    for result, ours, theirs in scores:
        row = pretrain_seeds.index(result.pretrain_seed)
        column = seeds.index(result.seed)
        differences[row, column] = [
            ours.get(case, np.nan) - theirs.get(case, np.nan) for case in cases
        ]
    return differences, _subjects_of(pairs, cases)


def _compare_answers(pairs: Pairs) -> Comparison:
    """Compare a score such as kappa, which is not a mean over cases.

    In each resample it is computed again from the cases that were drawn.
    """
    pretrain_seeds, seeds = _seeds(pairs)
    answers = [(result, result.answers(), twin.answers()) for result, twin in pairs]
    cases = _common_cases([(ours, theirs) for _, ours, theirs in answers])
    occurring = [
        answer for _, ours, theirs in answers for answer in (*ours.values(), *theirs.values())
    ]
    classes = class_scores.count_classes(occurring)
    # a fixed seed: the same runs give the same table
    rng = np.random.default_rng(0)
    sizes = (len(pretrain_seeds), len(seeds))
    # the first row counts everything once: the score without resampling
    drawn = [
        np.vstack([np.ones(counts.shape[1]), counts])
        for counts in _resample(rng, sizes, _subjects_of(pairs, cases), DRAWS)
    ]
    by_run = []
    total = np.zeros(1 + DRAWS)
    weight = np.zeros(1 + DRAWS)
    for result, ours, theirs in answers:
        common = [case in ours and case in theirs for case in cases]
        scores = [
            _resampled_scores(result.key, predictions, cases, common, drawn[2], classes)
            for predictions in (ours, theirs)
        ]
        difference = scores[0] - scores[1]
        by_run.append(difference[0])
        row = pretrain_seeds.index(result.pretrain_seed)
        column = seeds.index(result.seed)
        times = np.where(np.isnan(difference), 0, drawn[0][:, row] * drawn[1][:, column])
        total = total + times * np.nan_to_num(difference)
        weight = weight + times
    means = (total[1:] / np.maximum(weight[1:], 1))[weight[1:] > 0]
    return Comparison(np.array(by_run), *_interval(means))


def _resampled_scores(
    key: str,
    answers: Mapping[str, tuple[int, int]],
    cases: Sequence[str],
    counted: Sequence[bool],
    drawn: np.ndarray,
    classes: int,
) -> np.ndarray:
    """The score in every resample.

    Args:
        key: which score.
        answers: true and predicted class by case.
        cases: in the order of `drawn`.
        counted: which of the cases count.
        drawn: (resample, case) how often each case was drawn.
        classes: how many there are.

    Returns:
        (resample,), nan where it is not defined.
    """
    one_hot = np.zeros((len(cases), classes**2))
    places = [answers[case] for case, counts in zip(cases, counted, strict=True) if counts]
    one_hot[np.array(counted)] = class_scores.counts(places, classes)
    return class_scores.scores(key, (drawn @ one_hot).reshape(-1, classes, classes))


def _seeds(pairs: Pairs) -> tuple[list[int | None], list[int]]:
    """The pre-training seeds and the seeds that occur."""
    runs = [result for result, _ in pairs]
    pretrain_seeds = list(dict.fromkeys(run.pretrain_seed for run in runs))
    return pretrain_seeds, list(dict.fromkeys(run.seed for run in runs))


def _common_cases(pairs: Sequence[tuple[Mapping[str, object], Mapping[str, object]]]) -> list[str]:
    """The cases that both runs of at least one pair have, sorted."""
    return sorted({case for ours, theirs in pairs for case in ours.keys() & theirs.keys()})


def _subjects_of(pairs: Pairs, cases: Sequence[str]) -> list[str]:
    subjects = pairs[0][0].subjects
    return [subjects.get(case, case) for case in cases]


def bootstrap(
    differences: np.ndarray, subjects: Sequence[str] | None = None, draws: int = DRAWS
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference.

    Pre-training seeds, seeds and subjects are resampled independently of each other, since each
    of them is a sample: other seeds and other subjects would have been as good.

    Args:
        differences: (pre-training seed, seed, case), nan where one is missing.
        subjects: of the cases; default: each case is its own subject.
        draws: number of resamples.
    """
    *seeds, cases = differences.shape
    subjects = subjects or [str(case) for case in range(cases)]
    drawn = _resample(np.random.default_rng(0), seeds, subjects, draws)
    # the mean of a resample is a mean weighted by how often each value was drawn
    # a missing run has the weight 0 in both sums
    sums = _weighted_sums(drawn, np.nan_to_num(differences))
    weights = _weighted_sums(drawn, ~np.isnan(differences))
    return _interval(sums[weights > 0] / weights[weights > 0])


def _weighted_sums(drawn: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.einsum("np,ns,nc,psc->n", *drawn, values, optimize=True)
    return sums


def _interval(means: np.ndarray) -> tuple[float, float]:
    """The central 95 %; nan where there are no means."""
    if not len(means):
        return np.nan, np.nan
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _resample(
    rng: np.random.Generator, seeds: Sequence[int], subjects: Sequence[str], draws: int
) -> list[np.ndarray]:
    """How often each seed and each case is drawn, with as many draws as there are.

    The eyes or sessions of one subject are alike, so they are drawn together.

    Args:
        rng: draws.
        seeds: how many there are, for each kind of seed.
        subjects: the subject of each case.
        draws: number of resamples.

    Returns:
        (draws, count) for each kind of seed, and for the cases.
    """
    numbers = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
    sizes = (*seeds, len(numbers))
    # counts, not indices: a resample is then a matrix product
    *of_seeds, of_subjects = (rng.multinomial(size, [1 / size] * size, draws) for size in sizes)
    return [*of_seeds, of_subjects[:, [numbers[subject] for subject in subjects]]]


def labels_at(score: float, curve: Mapping[int, float]) -> float | None:
    """The fewest labels at which a curve of score by labels reaches a score.

    The curve is straight between its points. None where the score is below the first point or
    above all of them.
    """
    points = sorted(curve.items())
    if not points or score < points[0][1]:
        return None
    previous_labels, previous_score = points[0]
    for labels, reached in points:
        if reached >= score:
            rise = reached - previous_score
            share = (score - previous_score) / rise if rise > 0 else 1.0
            return previous_labels + share * (labels - previous_labels)
        previous_labels = labels
        previous_score = reached
    return None
