"""Resize and crop image batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images of other edges that show the same: axes that shrink are averaged, axes that grow are interpolated.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    fewer = [min(have, want) for have, want in zip(x.shape[2:], size, strict=True)]
    x = F.interpolate(x, size=fewer, mode="area") if fewer != list(x.shape[2:]) else x
    if fewer == list(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear" if len(size) == 2 else "trilinear")


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps brought to a finer grid linearly, as by `F.interpolate`, but by one matrix product for each axis.

    Less work than weighing 4 or 8 corners for each voxel, above all for the gradient, whose sum on a GPU then also has
    a fixed order. One value that is not finite spoils all of its map.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    fine = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        for axis in reversed(range(2, x.ndim)):
            have, want = x.shape[axis], size[axis - 2]
            if have == want:
                continue
            unit = torch.eye(have, dtype=fine.dtype, device=x.device)
            weights = F.interpolate(unit[None], want, mode="linear")[0]  # (have, want)
            if axis == x.ndim - 1:
                fine = fine @ weights
                continue
            shape = [*fine.shape[:axis], want, *fine.shape[axis + 1 :]]
            rows = fine.reshape(-1, have, math.prod(shape[axis + 1 :]))
            fine = torch.bmm(weights.T.expand(len(rows), -1, -1), rows).view(shape)
    return fine.to(x.dtype)


def crop_to(x: Tensor, size: Sequence[int], rng: torch.Generator) -> Tensor:
    """A view of the batch at one random offset, `size` voxels large."""
    for axis, (have, want) in enumerate(zip(x.shape[2:], size, strict=True)):
        start = int(torch.randint(have - want + 1, (), generator=rng))
        x = x.narrow(2 + axis, start, want)
    return x
