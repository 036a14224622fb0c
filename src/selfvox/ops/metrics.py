"""Scores of segmentations (overlap, surface distance, volume) and classifications (kappa, AUC)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from torch import from_numpy

from selfvox.ops.boxes import bounding_box

# voxels around the union of both masks: its rim is then background where the scan goes on
MARGIN = 1


def dice_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """Dice of the classes 1 to `classes` - 1; 1 where both are empty, 0 where only one is.

    Args:
        prediction: class numbers, any shape.
        truth: the same.
        classes: how many there are, the background included; higher numbers are ignored.
    """
    predicted = prediction.ravel()
    true = truth.ravel()
    overlap = np.bincount(predicted[predicted == true], minlength=classes)[1:classes]
    predicted_sizes = np.bincount(predicted, minlength=classes)[1:classes]
    true_sizes = np.bincount(true, minlength=classes)[1:classes]
    sizes = predicted_sizes + true_sizes
    scores = np.divide(2 * overlap, sizes, out=np.ones(classes - 1), where=sizes > 0)
    return [float(score) for score in scores]


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """HD95 and mean surface distance in mm of two masks (*space); nan where either is empty.

    The surface is the voxels of the mask with a face neighbour outside it; beyond the scan's border
    is outside. Distances run between voxel centres. HD95: the larger of the two directions' 95th
    percentiles. Mean: over the distances of both directions together.
    """
    if not (prediction.any() and truth.any()):
        return math.nan, math.nan
    # only here: MONAI takes seconds
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    # distances outside the box are not needed: a small organ takes little time
    box = bounding_box(prediction | truth, MARGIN)
    # MONAI wants a batch and a channel
    masks = [
        from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (prediction, truth)
    ]
    spacing = [float(edge) for edge in spacing_mm]
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own function by an argument that it deprecates
        warnings.filterwarnings(
            "ignore", message=".*always_return_as_numpy", category=FutureWarning
        )
        hd95 = compute_hausdorff_distance(
            *masks, include_background=True, percentile=95, spacing=spacing
        )
        mean = compute_average_surface_distance(
            *masks, include_background=True, symmetric=True, spacing=spacing
        )
    return float(hd95), float(mean)


def volume_ml(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in ml (cubic centimetres)."""
    return int(np.count_nonzero(mask)) * math.prod(float(edge) for edge in spacing_mm) / 1000


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix (true, predicted) of class numbers (n,)."""
    pairs = truth * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def kappa(tables: np.ndarray) -> np.ndarray:
    """Quadratic weighted kappa (...) of confusion matrices (..., true, predicted) (Cohen 1968).

    1 is agreement, 0 chance; nan where all cases are of one class.
    """
    numbers = np.arange(tables.shape[-1])
    disagreement = (numbers[:, None] - numbers) ** 2
    true_counts = tables.sum(-1)
    predicted_counts = tables.sum(-2)
    by_chance = np.einsum("...i,...j,ij->...", true_counts, predicted_counts, disagreement)
    observed = (tables * disagreement).sum((-1, -2)) * tables.sum((-1, -2))
    ratio: np.ndarray = np.divide(
        observed, by_chance, out=np.full(by_chance.shape, np.nan), where=by_chance > 0
    )
    return 1 - ratio


def recalls(tables: np.ndarray) -> np.ndarray:
    """Recall of each class (..., class), from confusion matrices (..., true, predicted).

    nan where a class has no case.
    """
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    totals = tables.sum(-1)
    shares: np.ndarray = np.divide(
        hits, totals, out=np.full(totals.shape, np.nan), where=totals > 0
    )
    return shares


def auc(positive: np.ndarray, values: np.ndarray) -> float:
    """Area under the ROC curve, as Mann-Whitney's statistic from ranks.

    The share of pairs in which the positive has the larger value; ties count half; nan where all
    are positive, or none.

    Args:
        positive: (n,) true or false.
        values: (n,).
    """
    from scipy.stats import rankdata  # only here: it takes half a second

    positives = int(positive.sum())
    negatives = int((~positive).sum())
    if not positives or not negatives:
        return math.nan
    rank_sum = rankdata(values)[positive].sum()
    smallest_rank_sum = positives * (positives + 1) / 2
    return float((rank_sum - smallest_rank_sum) / (positives * negatives))


def auc_per_class(truth: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """`auc` of each class against the rest, from classes (n,) and probabilities (n, class)."""
    return [
        auc(truth == number, probabilities[:, number]) for number in range(probabilities.shape[1])
    ]


def nan_mean(values: Iterable[float]) -> float:
    """The mean of what is defined; nan where nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
