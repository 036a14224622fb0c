"""What embeddings say of scans: which are alike, and which properties a linear probe reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfvox.data.properties import is_number

_FOLDS = 5
_MAX_ITERATIONS = 1000  # of logistic regression


class Probe(NamedTuple):
    """How well a linear probe reads a property of scans that it was not fitted to."""

    measure: str  # balanced accuracy; of a number, mean absolute error
    score: float
    chance: float  # of a guess: one class for all, or the median
    groups: dict[str, float]  # the same by group: recall of a class, mean absolute error
    values: np.ndarray  # of each scan, a class or a number
    predicted: np.ndarray  # the same, by a probe that was not fitted to this person

    @property
    def scans(self) -> int:
        """How many scans were probed."""
        return len(self.values)

    @property
    def largest_gap(self) -> float:
        """Difference between the best and the worst group."""
        return max(self.groups.values()) - min(self.groups.values())

    def by(self, groups: Sequence[str]) -> Probe:
        """The same probe, scored in each group of scans by another property, such as sex.

        The score of a group is the mean recall of the classes that occur in it, or the mean
        absolute error.

        Args:
            groups: that of each scan; scans of no group, "", count in none.
        """
        members = {group: np.array(groups) == group for group in sorted(set(groups) - {""})}
        scores = {
            group: self._score(self.values[those], self.predicted[those])
            for group, those in members.items()
        }
        return self._replace(groups=scores)

    def _score(self, values: np.ndarray, predicted: np.ndarray) -> float:
        if values.dtype.kind == "f":
            return float(np.abs(predicted - values).mean())
        recalls = [(predicted[values == value] == value).mean() for value in np.unique(values)]
        return float(np.mean(recalls))


def standardise(vectors: np.ndarray) -> np.ndarray:
    """Vectors (scan, width) with mean 0 and deviation 1 in each feature that varies."""
    deviation = vectors.std(0)
    standardised: np.ndarray = (vectors - vectors.mean(0)) / np.where(deviation > 0, deviation, 1)
    return standardised


def distances(vectors: np.ndarray) -> np.ndarray:
    """Euclidean distances (scan, scan) of standardised vectors, over the root of the width."""
    standardised = standardise(vectors)
    squares = (standardised**2).sum(1)
    squared = squares[:, None] + squares[None] - 2 * standardised @ standardised.T
    # rounding makes some of those to itself negative
    apart: np.ndarray = np.sqrt(np.maximum(squared, 0) / vectors.shape[1])
    np.fill_diagonal(apart, 0)
    return apart


def plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directions in which standardised vectors differ most (principal components).

    Returns:
        (scan, 2), and the share of the variance in each.
    """
    standardised = standardise(vectors)
    left, sizes, _ = np.linalg.svd(standardised, full_matrices=False)
    # the sign of a direction is arbitrary: that of its largest value is made positive
    left = left[:, :2] * np.sign(left[np.abs(left[:, :2]).argmax(0), range(min(2, left.shape[1]))])
    points = np.zeros((len(vectors), 2))
    points[:, : left.shape[1]] = left * sizes[: left.shape[1]]
    total = float((sizes**2).sum())
    shares = np.zeros(2)
    shares[: left.shape[1]] = sizes[:2] ** 2 / total if total else 0
    return points, shares


def probe_property(
    vectors: np.ndarray, values: Sequence[str], subjects: Sequence[str]
) -> Probe | None:
    """Cross-validated linear probe of a property; scans of one person are in one fold.

    Args:
        vectors: (scan, width).
        values: of each scan.
        subjects: of each scan.

    Returns:
        None where a class has fewer than two persons, so that nothing can be held out.
    """
    if is_number(values):
        return _regress(vectors, np.array(values, float), subjects)
    return _classify(vectors, np.array(values), subjects)


def _classify(vectors: np.ndarray, values: np.ndarray, subjects: Sequence[str]) -> Probe | None:
    # only here: scikit-learn takes seconds
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(values)
    people = [len(set(np.array(subjects)[values == value])) for value in classes]
    if len(classes) < 2 or min(people) < 2:
        return None
    folds = StratifiedGroupKFold(min(_FOLDS, *people), shuffle=True, random_state=0)
    model = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS, class_weight="balanced")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = cross_val_predict(model, vectors, values, groups=subjects, cv=folds)
    recalls = {str(value): float((predicted[values == value] == value).mean()) for value in classes}
    return Probe(
        "balanced accuracy",
        float(np.mean(list(recalls.values()))),
        1 / len(classes),
        recalls,
        values,
        predicted,
    )


def _regress(vectors: np.ndarray, values: np.ndarray, subjects: Sequence[str]) -> Probe | None:
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    people = len(set(subjects))
    if people < 2:
        return None
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9)))
    folds = GroupKFold(min(_FOLDS, people), shuffle=True, random_state=0)
    predicted = cross_val_predict(model, vectors, values, groups=subjects, cv=folds)
    errors = np.abs(predicted - values)
    middle = np.median(values)
    halves = {
        f"up to {middle:g}": float(errors[values <= middle].mean()),
        f"above {middle:g}": float(errors[values > middle].mean()),
    }
    return Probe(
        "mean absolute error",
        float(errors.mean()),
        float(np.abs(values - middle).mean()),
        halves,
        values,
        predicted,
    )
