"""Resize, pad and crop image batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images: axes that shrink are averaged, axes that grow are interpolated.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    shrunk = [min(old, new) for old, new in zip(x.shape[2:], size, strict=True)]
    if shrunk != list(x.shape[2:]):
        # area averages all voxels: linear interpolation would skip some
        x = F.interpolate(x, size=shrunk, mode="area")
    if shrunk == list(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear" if len(size) == 2 else "trilinear")


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate maps linearly to a finer grid, by one matrix product for each axis.

    The result is that of `F.interpolate`. It is less work than weighing 4 or 8 corners for each
    voxel, above all for the gradient, and on a GPU the sum of the gradient then has a fixed order.
    One value that is not finite spoils all of its map.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    fine = x.to(torch.promote_types(x.dtype, torch.float32))
    # autocast would round the weights to 8 bits
    with torch.autocast(x.device.type, enabled=False):
        for axis in reversed(range(2, x.ndim)):
            if x.shape[axis] != size[axis - 2]:
                fine = _enlarge_axis(fine, axis, size[axis - 2])
    return fine.to(x.dtype)


def _enlarge_axis(x: Tensor, axis: int, size: int) -> Tensor:
    unit = torch.eye(x.shape[axis], dtype=x.dtype, device=x.device)
    # the weights of F.interpolate itself: what it makes of unit vectors
    weights = F.interpolate(unit[None], size, mode="linear")[0]  # (old edge, new edge)
    if axis == x.ndim - 1:
        return x @ weights
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    columns = x.reshape(-1, x.shape[axis], math.prod(shape[axis + 1 :]))
    return torch.bmm(weights.T.expand(len(columns), -1, -1), columns).view(shape)


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the last voxels of each axis until its edge is a multiple.

    Args:
        x: (batch, channel, *space).
        multiple: for each axis.
    """
    missing = [-edge % unit for edge, unit in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    # F.pad lists the last axis first
    padding = [number for after in reversed(missing) for number in (0, after)]
    return F.pad(x, padding, mode="replicate")


def random_crop(x: Tensor, size: Sequence[int], rng: torch.Generator) -> Tensor:
    """A view of `size` voxels of (batch, channel, *space), at one random offset for all."""
    for axis, (edge, cropped) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        # one offset for all: a view, where offsets of their own would copy
        start = int(torch.randint(edge - cropped + 1, (), generator=rng))
        x = x.narrow(axis, start, cropped)
    return x
