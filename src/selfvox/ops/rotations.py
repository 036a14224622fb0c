"""Rotations by right angles of image batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selfvox.ops.planes import Plane


class AxisRotation(NamedTuple):
    """An exact rotation: output axis `i` is input axis `axes[i]`, reversed if `flipped[i]`."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def determinant(self) -> int:
        """+1 for a rotation, -1 for a reflection."""
        # the parity of the permutation, and that of the flips
        inversions = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return -1 if (inversions + sum(self.flipped)) % 2 else 1

    def apply(self, x: Tensor) -> Tensor:
        """Rotate the last d axes of `x` by moving voxels, without interpolation."""
        d = len(self.axes)
        leading = x.ndim - d
        moved = x.permute(*range(leading), *(leading + axis for axis in self.axes))
        return moved.flip([leading + axis for axis in range(d) if self.flipped[axis]])

    def inverse(self) -> AxisRotation:
        """The rotation that undoes this one."""
        axes = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return AxisRotation(axes, tuple(self.flipped[axis] for axis in axes))


def plane_rotations(
    spatial_dims: int, planes: Sequence[Plane] | None = None
) -> tuple[AxisRotation, ...]:
    """The identity, then 90°, 180° and 270° in each plane: 4 in 2D, 10 in 3D (paper A, 3.4)."""
    identity = AxisRotation(tuple(range(spatial_dims)), (False,) * spatial_dims)
    if planes is None:
        planes = list(itertools.combinations(range(spatial_dims), 2))
    rotations = [identity]
    for a, b in planes:
        swapped = list(identity.axes)
        swapped[a] = b
        swapped[b] = a
        flip_a = tuple(axis == a for axis in range(spatial_dims))
        flip_b = tuple(axis == b for axis in range(spatial_dims))
        flip_both = tuple(axis in (a, b) for axis in range(spatial_dims))
        rotations += [
            # 90°, 180° and 270°
            AxisRotation(tuple(swapped), flip_a),
            AxisRotation(identity.axes, flip_both),
            AxisRotation(tuple(swapped), flip_b),
        ]
    return tuple(rotations)


def rotation_group(spatial_dims: int) -> tuple[AxisRotation, ...]:
    """Every rotation that maps the grid onto itself: 4 in 2D, 24 in 3D; the identity first."""
    rotations_and_reflections = (
        AxisRotation(axes, flipped)
        for axes in itertools.permutations(range(spatial_dims))
        for flipped in itertools.product((False, True), repeat=spatial_dims)
    )
    return tuple(rotation for rotation in rotations_and_reflections if rotation.determinant == 1)


def rotate_batch(x: Tensor, rotations: Sequence[AxisRotation], chosen: Tensor) -> Tensor:
    """Rotate sample `i` of `x` by `rotations[chosen[i]]`; one pass per rotation, not per sample.

    Args:
        x: (batch, channel, *space), with equal edges on every axis that a rotation mixes.
        rotations: to choose from.
        chosen: (batch,) integers on the CPU.
    """
    counts = chosen.bincount(minlength=len(rotations)).tolist()
    # one copy for all rotations: the samples, by their rotation
    order = chosen.argsort(stable=True).to(x.device)
    out = torch.empty_like(x)
    start = 0
    for rotation, count in zip(rotations, counts, strict=True):
        if count:
            samples = order[start : start + count]
            out[samples] = rotation.apply(x[samples])
        start += count
    return out
