"""Rotations by right angles of image batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selfvox.ops.planes import Plane


class AxisRotation(NamedTuple):
    """An exact rotation: output axis `i` runs along input axis `axes[i]`, backwards where `flipped[i]`."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def determinant(self) -> int:
        """+1 for a rotation, -1 for a reflection."""
        inversions = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return -1 if (inversions + sum(self.flipped)) % 2 else 1

    def apply(self, x: Tensor) -> Tensor:
        """Rotate the last d axes of `x` by moving voxels, without interpolation."""
        d = len(self.axes)
        lead = range(x.ndim - d)
        moved = x.permute(*lead, *(len(lead) + axis for axis in self.axes))
        return moved.flip([len(lead) + i for i in range(d) if self.flipped[i]])

    def inverse(self) -> AxisRotation:
        """The rotation that undoes this one."""
        back = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return AxisRotation(back, tuple(self.flipped[i] for i in back))


def plane_rotations(
    spatial_dims: int, planes: Sequence[Plane] | None = None
) -> tuple[AxisRotation, ...]:
    """The identity, then 90°, 180° and 270° about each plane: 4 in 2D, 10 in 3D (paper A, section 3.4)."""
    identity = AxisRotation(tuple(range(spatial_dims)), (False,) * spatial_dims)
    found = [identity]
    for a, b in planes if planes is not None else itertools.combinations(range(spatial_dims), 2):
        axes = list(identity.axes)
        axes[a], axes[b] = b, a
        flip_a, flip_b = [list(identity.flipped) for _ in range(2)]
        flip_a[a] = flip_b[b] = True
        both = tuple(i in (a, b) for i in range(spatial_dims))
        found += [
            AxisRotation(tuple(axes), tuple(flip_a)),
            AxisRotation(identity.axes, both),
            AxisRotation(tuple(axes), tuple(flip_b)),
        ]
    return tuple(found)


def rotation_group(spatial_dims: int) -> tuple[AxisRotation, ...]:
    """Every rotation that maps the grid onto itself: 4 in 2D, 24 in 3D; the identity first."""
    every = (
        AxisRotation(axes, flipped)
        for axes in itertools.permutations(range(spatial_dims))
        for flipped in itertools.product((False, True), repeat=spatial_dims)
    )
    return tuple(rotation for rotation in every if rotation.determinant == 1)


def rotate_batch(x: Tensor, rotations: Sequence[AxisRotation], which: Tensor) -> Tensor:
    """Rotate sample `i` of `x` by `rotations[which[i]]`; one pass per rotation, not per sample.

    Args:
        x: (batch, channel, *space), with equal edges on every axis that a rotation mixes.
        rotations: the table.
        which: (batch,) integers on the CPU.
    """
    out = torch.empty_like(x)
    for number, rotation in enumerate(rotations):
        samples = (which == number).nonzero().flatten().to(x.device)
        if len(samples):
            out[samples] = rotation.apply(x[samples])
    return out
