"""Crops that may reach beyond an array, which is mirrored there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mirrored_crop(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copy `size` voxels of the last axes from `start` on, mirrored beyond the array.

    Equal to a slice of `np.pad(array, ..., mode="symmetric")`, without padding or reading the
    whole array.

    Args:
        array: (..., *space).
        start: first voxel on the last axes; may be negative.
        size: edges of the crop, of any length.
    """
    spatial = len(size)
    read: list[slice] = []
    indices: list[np.ndarray | None] = []  # within what is read; None where it is read in order
    for extent, first, count in zip(array.shape[-spatial:], start, size, strict=True):
        if first >= 0 and first + count <= extent:
            read.append(slice(first, first + count))
            indices.append(None)
            continue
        # the mirrored array repeats after twice its extent; its second half runs backwards
        index = np.arange(first, first + count) % (2 * extent)
        index = np.where(index < extent, index, 2 * extent - 1 - index)
        # only this range is read from disk
        low = int(index.min())
        read.append(slice(low, int(index.max()) + 1))
        indices.append(index - low)
    leading = [slice(None)] * (array.ndim - spatial)
    crop = array[(*leading, *read)]
    for axis, index in enumerate(indices, start=len(leading)):
        if index is not None:
            crop = np.take(crop, index, axis=axis)
    return np.array(crop, order="C")
