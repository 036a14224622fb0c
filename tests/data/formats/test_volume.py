"""What the 3D formats share: the check of an affine, and distances between two grids."""

import itertools

import numpy as np
import pytest

from selfvox.data.formats.volume import is_usable_affine, max_corner_distance_mm

SHEAR = np.array([[1.0, 0.2, 0, 4], [0, 2, 0.1, -5], [0, 0, 3, 6], [0, 0, 0, 1]])


def test_the_largest_corner_distance_is_that_of_all_eight_corners_one_by_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = SHEAR.copy()
        second = SHEAR.copy()
        second[:3] += rng.normal(size=(3, 4)) / 10
        shape = tuple(int(length) for length in rng.integers(1, 30, 3))
        distances = []
        for corner in itertools.product(*[(0, length - 1) for length in shape]):
            place = np.array([*corner, 1])
            distances.append(np.linalg.norm((first @ place - second @ place)[:3]))
        assert max_corner_distance_mm(first, second, shape) == pytest.approx(max(distances))


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_an_affine_is_judged_relative_to_its_voxel_sizes(size):
    affine = SHEAR * size
    assert is_usable_affine(affine)
    affine[:3, 2] = affine[:3, 0] + affine[:3, 1]  # all three axes in one plane
    assert not is_usable_affine(affine)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("entry", [(0, 0), (1, 3)])
def test_an_affine_that_is_not_finite_is_not_usable(entry, value):
    affine = SHEAR.copy()
    affine[entry] = value
    assert not is_usable_affine(affine)
