"""The box around a mask, compared with a search over all its voxels."""

import itertools

import numpy as np
import pytest

from selfvox.ops.boxes import bounding_box


def box_by_search(mask, margin):
    """The same box from the list of the mask's voxels."""
    voxels = [
        index
        for index in itertools.product(*(range(extent) for extent in mask.shape))
        if mask[index]
    ]
    box = []
    for axis, extent in enumerate(mask.shape):
        places = [index[axis] for index in voxels]
        box.append(slice(max(0, min(places) - margin), min(extent, max(places) + 1 + margin)))
    return tuple(box)


@pytest.mark.parametrize("margin", [0, 1, 3])
@pytest.mark.parametrize("shape", [(12,), (9, 7), (6, 5, 8)])
def test_the_box_is_that_of_a_search_over_all_voxels(shape, margin):
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.9):
        mask = rng.random(shape) < share
        mask.flat[int(rng.integers(mask.size))] = True
        assert bounding_box(mask, margin) == box_by_search(mask, margin)


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((3, 3), bool))
