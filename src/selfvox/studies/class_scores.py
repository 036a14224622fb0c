"""Scores of classified scans, which are computed of all cases together.

They are not means over cases, so for a resample of the cases they are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfvox.ops.metrics import kappa, recalls

# of ordered classes, and of others
KAPPA = "quadratic_kappa"
ACCURACY = "balanced_accuracy"


def score(key: str, answers: Sequence[tuple[int, int]]) -> float:
    """One score of (true, predicted) class numbers."""
    classes = count_classes(answers)
    matrix = counts(answers, classes).sum(0).reshape(1, classes, classes)
    return float(scores(key, matrix)[0])


def count_classes(answers: Sequence[tuple[int, int]]) -> int:
    """The number of classes, from the highest class number that occurs."""
    return 1 + max(max(true, predicted) for true, predicted in answers)


def counts(answers: Sequence[tuple[int, int]], classes: int) -> np.ndarray:
    """One-hot place of each case in the confusion matrix.

    Returns:
        (case, class * class), true class before predicted class.
    """
    places = [true * classes + predicted for true, predicted in answers]
    one_hot = np.zeros((len(answers), classes * classes))
    one_hot[np.arange(len(answers)), places] = 1
    return one_hot


def scores(key: str, tables: np.ndarray) -> np.ndarray:
    """Scores of confusion matrices.

    Args:
        key: `quadratic_kappa` or `balanced_accuracy`.
        tables: (n, true, predicted).

    Returns:
        (n,), nan where the score is not defined.
    """
    if key == KAPPA:
        return kappa(tables)
    # a class without a case has no recall
    accuracy: np.ndarray = np.nanmean(recalls(tables), axis=-1)
    return accuracy
