"""Scores of a segmentation: overlap, distance between surfaces, volume; and of a classification: agreement, AUC."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy.stats import rankdata
from torch import from_numpy

from selfvox.ops.boxes import bounding_box

MARGIN = (
    1  # voxels around the union of both masks, so that its rim is background where the scan goes on
)


def dice_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """Dice of the classes 1 to `classes` - 1; 1 where neither holds the class, 0 where only one does.

    Args:
        prediction: class numbers, any shape.
        truth: the same.
        classes: how many there are, the background included; higher numbers count as none of them.
    """
    one, other = prediction.ravel(), truth.ravel()
    both = np.bincount(one[one == other], minlength=classes)[1:classes]
    sizes = (
        np.bincount(one, minlength=classes)[1:classes]
        + np.bincount(other, minlength=classes)[1:classes]
    )
    return [float(d) for d in np.divide(2 * both, sizes, out=np.ones(classes - 1), where=sizes > 0)]


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """HD95 and mean surface distance in mm between two masks (*space) of one class; nan where either is empty.

    The surface is the voxels of the mask that have a face neighbour outside it, the scan's own border counting as
    outside; distances run between voxel centres. HD95: the larger of the two directions' 95th percentiles. Mean: over
    the distances of both directions together.
    """
    union = prediction | truth
    if not (prediction.any() and truth.any()):
        return math.nan, math.nan
    box = bounding_box(union, MARGIN)
    masks = [
        from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (prediction, truth)
    ]
    how = {"include_background": True, "spacing": [float(s) for s in spacing_mm]}
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own function by an argument that it deprecates
        warnings.filterwarnings(
            "ignore", message=".*always_return_as_numpy", category=FutureWarning
        )
        hd95 = compute_hausdorff_distance(*masks, percentile=95, **how)
        return float(hd95), float(compute_average_surface_distance(*masks, symmetric=True, **how))


def volume_ml(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in ml (cubic centimetres)."""
    return int(np.count_nonzero(mask)) * math.prod(float(s) for s in spacing_mm) / 1000


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was found for each true one: (true, found), from class numbers (n,)."""
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


def kappa(tables: np.ndarray) -> np.ndarray:
    """Quadratic weighted kappa (...) of confusion matrices (..., true, found); nan where all is one class.

    Cohen 1968: 1 is agreement, 0 chance.
    """
    numbers = np.arange(tables.shape[-1])
    apart = (numbers[:, None] - numbers) ** 2
    by_chance = np.einsum("...i,...j,ij->...", tables.sum(-1), tables.sum(-2), apart)
    there = (tables * apart).sum((-1, -2)) * tables.sum((-1, -2))
    ratio: np.ndarray = np.divide(
        there, by_chance, out=np.full(by_chance.shape, np.nan), where=by_chance > 0
    )
    return 1 - ratio


def recalls(tables: np.ndarray) -> np.ndarray:
    """Share of each class's cases that were found (..., class), from confusion matrices; nan where it has none."""
    hits, totals = np.diagonal(tables, axis1=-2, axis2=-1), tables.sum(-1)
    shares: np.ndarray = np.divide(
        hits, totals, out=np.full(totals.shape, np.nan), where=totals > 0
    )
    return shares


def auc(own: np.ndarray, values: np.ndarray) -> float:
    """Area under the ROC curve: how often one of `own` has a larger value than one of the others; ties count half.

    Mann-Whitney's statistic, from ranks; nan where all are `own`, or none.

    Args:
        own: (n,) true or false.
        values: (n,).
    """
    positive, negative = int(own.sum()), int((~own).sum())
    if not positive or not negative:
        return math.nan
    return float(
        (rankdata(values)[own].sum() - positive * (positive + 1) / 2) / (positive * negative)
    )


def auc_per_class(truth: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """`auc` of each class against the rest, from class numbers (n,) and probabilities (n, class)."""
    return [
        auc(truth == number, probabilities[:, number]) for number in range(probabilities.shape[1])
    ]


def nan_mean(values: Iterable[float]) -> float:
    """The mean of what is defined; nan where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
