"""Statistics of a study: differences of runs to their twins, by run and by subject."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from selfvox.studies import class_scores
from selfvox.studies.random_effects import MeanError, error_of_mean
from selfvox.studies.results import Result

Pairs = Sequence[tuple[Result, Result]]


class Comparison(NamedTuple):
    """How a method differs from another."""

    by_run: np.ndarray  # (pair of runs,) difference of their scores
    by_twin: np.ndarray  # (run of the other,) mean over the runs that are compared with it
    error: MeanError | None  # of the mean of `by_run`; None where it cannot be estimated

    def columns(self) -> dict[str, Any]:
        """The mean difference and its 95 % interval, as columns; None where there is none."""
        mean = float(self.by_run.mean())
        low, high = self.error.interval(mean) if self.error else (None, None)
        return {"difference": mean, "low": low, "high": high}


def pair_runs(group: Sequence[Result], twins: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Pair each run with its twin's of the same seed.

    Where both are pre-trained, the pre-training seed agrees too. A run without pre-training is
    paired with each pre-training of the twin, as a run of that pre-training seed. Pairs that were
    not scored on one case in common are left out.
    """
    pairs = []
    for result in group:
        for twin in twins:
            # the pre-training that both belong to
            own = twin.pretrain_seed if result.pretrain_seed is None else result.pretrain_seed
            if (twin.seed, twin.pretrain_seed) not in ((result.seed, own), (result.seed, None)):
                continue
            if set(result.cases()) & set(twin.cases()):
                pairs.append((replace(result, pretrain_seed=own), twin))
    return pairs


def compare(pairs: Pairs, name: str) -> Comparison | None:
    """The difference of the runs to their twins in one class or region.

    Args:
        pairs: at least one, of a method and another at the same number of labels.
        name: ignored where scans are classified, which have one score.

    Returns:
        None if in no pair one case is scored in both runs.
    """
    differences = []
    by_subject = []
    of_twins: dict[tuple[int, int | None], list[float]] = {}
    for result, twin in pairs:
        cases = result.scored(name) & twin.scored(name)
        if not cases:
            continue
        ours = contributions(result, name, cases)
        theirs = contributions(twin, name, cases)
        difference = ours.score - theirs.score
        differences.append(difference)
        of_twins.setdefault((twin.seed, twin.pretrain_seed), []).append(difference)
        of_run = {who: value - theirs.by_subject[who] for who, value in ours.by_subject.items()}
        by_subject.append((result, of_run))
    if not differences:
        return None
    return Comparison(
        np.array(differences),
        np.array([np.mean(values) for values in of_twins.values()]),
        error_of_mean(as_array(by_subject)),
    )


def mean_of_runs(results: Sequence[Result], name: str) -> tuple[float, MeanError | None]:
    """The mean score of runs in one class or region, and its error; each has it in one case."""
    parts = [contributions(result, name, result.scored(name)) for result in results]
    by_subject = [(result, part.by_subject) for result, part in zip(results, parts, strict=True)]
    return float(np.mean([part.score for part in parts])), error_of_mean(as_array(by_subject))


class Contributions(NamedTuple):
    """The score of a run, and what each subject contributes to it."""

    score: float
    by_subject: Mapping[str, float]


def contributions(result: Result, name: str, cases: Collection[str]) -> Contributions:
    """The score of a run over some cases, and its jackknife pseudo-values by subject.

    With `n` subjects, the pseudo-value of one is `n` times the score minus `n - 1` times the score
    without its cases (Tukey 1958). For a mean over cases of as many subjects it is the score of the
    case; for a score such as kappa, which is no mean, the mean of the pseudo-values is close to it.
    The eyes or sessions of one subject are alike, so they count together.

    Args:
        result: the run.
        name: class or region; ignored where scans are classified.
        cases: which of its cases count.
    """
    subjects: dict[str, list[str]] = {}
    for case in sorted(cases):
        subjects.setdefault(result.subjects.get(case, case), []).append(case)
    if result.answers():
        score, without = _without_subject_of_answers(result, list(subjects.values()))
    else:
        score, without = _without_subject_of_means(result.of_case(name), list(subjects.values()))
    count = len(subjects)
    values = count * score - (count - 1) * without if count > 1 else np.array([score] * count)
    return Contributions(score, dict(zip(subjects, values.tolist(), strict=True)))


def _without_subject_of_means(
    of_case: Mapping[str, float], subjects: Sequence[Sequence[str]]
) -> tuple[float, np.ndarray]:
    """The mean over cases, and without each subject (subject,); nan where no case is left."""
    sums = np.array([sum(of_case[case] for case in cases) for cases in subjects])
    counts = np.array([len(cases) for cases in subjects])
    if not len(counts):
        return np.nan, sums
    left = counts.sum() - counts
    without = np.where(left > 0, sums.sum() - sums, np.nan) / np.maximum(left, 1)
    return float(sums.sum() / counts.sum()), without


def _without_subject_of_answers(
    result: Result, subjects: Sequence[Sequence[str]]
) -> tuple[float, np.ndarray]:
    """The score of all answers, and without each subject (subject,)."""
    answers = result.answers()
    classes = class_scores.count_classes(list(answers.values()))
    tables = np.array(
        [
            class_scores.counts([answers[case] for case in cases], classes).sum(0)
            for cases in subjects
        ]
    ).reshape(-1, classes, classes)
    whole = tables.sum(0, keepdims=True)
    score, *without = class_scores.scores(result.key, np.concatenate([whole, whole - tables]))
    return float(score), np.array(without)


def as_array(values: Sequence[tuple[Result, Mapping[str, float]]]) -> np.ndarray:
    """Values of runs by subject as (pre-training seed, seed, subject), nan where missing."""
    pretrain_seeds = list(dict.fromkeys(run.pretrain_seed for run, _ in values))
    seeds = list(dict.fromkeys(run.seed for run, _ in values))
    subjects = sorted({subject for _, of_run in values for subject in of_run})
    array = np.full((len(pretrain_seeds), len(seeds), len(subjects)), np.nan)
    for run, of_run in values:
        row = pretrain_seeds.index(run.pretrain_seed)
        column = seeds.index(run.seed)
        array[row, column] = [of_run.get(subject, np.nan) for subject in subjects]
    return array
