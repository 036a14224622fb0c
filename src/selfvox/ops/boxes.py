"""Boxes around masks."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that contains every voxel of a mask (*space), one slice per axis.

    Args:
        mask: bool.
        margin: voxels added on every side, as far as the array reaches.

    Raises:
        ValueError: the mask is empty.
    """
    box = []
    for axis, extent in enumerate(mask.shape):
        other_axes = tuple(index for index in range(mask.ndim) if index != axis)
        # one axis at a time: a list of all voxels would take far more memory
        filled = np.flatnonzero(mask.any(axis=other_axes))
        if not len(filled):
            raise ValueError("an empty mask has no bounding box")
        start = max(0, int(filled[0]) - margin)
        stop = min(extent, int(filled[-1]) + 1 + margin)
        box.append(slice(start, stop))
    return tuple(box)
