"""Scores of a segmentation: overlap, distance between surfaces, volume; and of a classification: agreement, AUC."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy.stats import rankdata
from torch import from_numpy

MARGIN = 1  # voxels around the union of both masks, so that its rim is background where the scan goes on


def dice_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """Dice of the classes 1 to `classes` - 1; 1 where neither holds the class, 0 where only one does.

    Args:
        prediction: class numbers, any shape.
        truth: the same.
        classes: how many there are, the background included; higher numbers count as none of them.
    """
    one, other = prediction.ravel(), truth.ravel()
    both = np.bincount(one[one == other], minlength=classes)[1:classes]
    sizes = np.bincount(one, minlength=classes)[1:classes] + np.bincount(other, minlength=classes)[1:classes]
    return [float(d) for d in np.divide(2 * both, sizes, out=np.ones(classes - 1), where=sizes > 0)]


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """HD95 and mean surface distance in mm between two masks (*space) of one class; nan where either is empty.

    The surface is the voxels of the mask that have a face neighbour outside it, the scan's own border counting as
    outside; distances run between voxel centres. HD95: the larger of the two directions' 95th percentiles. Mean: over
    the distances of both directions together.
    """
    union = prediction | truth
    if not (prediction.any() and truth.any()):
        return math.nan, math.nan
    box = []
    for axis in range(union.ndim):
        filled = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(max(0, int(filled[0]) - MARGIN), int(filled[-1]) + 1 + MARGIN))
    masks = [from_numpy(np.ascontiguousarray(mask[tuple(box)]))[None, None] for mask in (prediction, truth)]
    how = {"include_background": True, "spacing": [float(s) for s in spacing_mm]}
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own function by an argument that it deprecates
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(*masks, percentile=95, **how)
        return float(hd95), float(compute_average_surface_distance(*masks, symmetric=True, **how))


def volume_ml(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in ml (cubic centimetres)."""
    return int(np.count_nonzero(mask)) * math.prod(float(s) for s in spacing_mm) / 1000


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was found for each true one: (true, found), from class numbers (n,)."""
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


def kappa(table: np.ndarray) -> float:
    """Quadratic weighted kappa of a confusion matrix (Cohen 1968): 1 is agreement, 0 chance; nan for one class."""
    numbers = np.arange(len(table))
    weights = (numbers[:, None] - numbers[None, :]) ** 2
    by_chance = table.sum(1)[:, None] * table.sum(0)[None, :] / max(1, table.sum())
    apart = float((weights * by_chance).sum())
    return 1 - float((weights * table).sum()) / apart if apart else math.nan


def recalls(table: np.ndarray) -> list[float]:
    """Share of each class's cases that were found, from a confusion matrix; nan where it has none."""
    totals = table.sum(1)
    return [float(hit / total) if total else math.nan for hit, total in zip(np.diag(table), totals, strict=True)]


def auc_per_class(truth: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """Area under the ROC curve of each class against the rest: how often a case of it has the larger probability.

    Ties count half (Mann-Whitney); nan where all cases or none are of the class.

    Args:
        truth: (n,) class numbers.
        probabilities: (n, class).
    """
    found = []
    for number in range(probabilities.shape[1]):
        own = truth == number
        positive, negative = int(own.sum()), int((~own).sum())
        ranks = rankdata(probabilities[:, number])[own].sum() - positive * (positive + 1) / 2
        found.append(float(ranks / (positive * negative)) if positive and negative else math.nan)
    return found


def mean_known(values: Sequence[float]) -> float:
    """The mean of what is defined; nan where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
