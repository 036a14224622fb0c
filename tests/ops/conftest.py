"""The matrix of a rotation of the voxel grid."""

import numpy as np
import pytest
import torch


@pytest.fixture
def rotation_matrix():
    """The rotation's matrix, from what it does to the positions of voxels."""

    def matrix_of(rotation):
        d = len(rotation.axes)
        grid = np.stack(np.meshgrid(*[np.arange(3) - 1] * d, indexing="ij"))
        moved = np.stack([rotation.apply(torch.from_numpy(axis)).numpy() for axis in grid])
        # the input position at each output unit vector
        unit_positions = np.eye(d, dtype=int) + 1
        return np.array([moved[(slice(None), *position)] for position in unit_positions]).T

    return matrix_of
