"""Scores of classified scans: not means over cases, so that of cases drawn anew they are computed anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfvox.ops.metrics import kappa, recalls

KAPPA, ACCURACY = "quadratic_kappa", "balanced_accuracy"  # of ordered classes, and of others


def score(key: str, answers: Sequence[tuple[int, int]]) -> float:
    """One score of (true, predicted) class numbers."""
    classes = 1 + max(max(pair) for pair in answers)
    return float(scores(key, counts(answers, classes).sum(0).reshape(1, classes, classes))[0])


def counts(answers: Sequence[tuple[int, int]], classes: int) -> np.ndarray:
    """(case, class * class): where in the confusion matrix each case counts."""
    found = np.zeros((len(answers), classes * classes))
    found[np.arange(len(answers)), [true * classes + predicted for true, predicted in answers]] = 1
    return found


def scores(key: str, tables: np.ndarray) -> np.ndarray:
    """The scores (n,) of confusion matrices (n, true, predicted); nan where one is not defined."""
    if key == KAPPA:
        return kappa(tables)
    found: np.ndarray = np.nanmean(recalls(tables), axis=-1)
    return found
