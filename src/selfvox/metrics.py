"""Scores of a segmentation: overlap, distance between surfaces, volume."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance
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
