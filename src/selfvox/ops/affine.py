"""Affine maps of image batches: turns, zooms and views, in one resampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.ops.numba_kernels import affine
from selfvox.ops.planes import Plane


def rotation_matrices(angles: Tensor, planes: Sequence[Plane], spatial_dims: int) -> Tensor:
    """Rotation matrices from angles about planes, composed in the order given.

    Args:
        angles: (batch, plane) in radians.
        planes: pairs of axes, one per column of `angles`.
        spatial_dims: d.

    Returns:
        (batch, d, d), acting on (row, column) or (x, y, z) positions.
    """
    total = torch.eye(spatial_dims).repeat(len(angles), 1, 1)
    for column, (a, b) in enumerate(planes):
        cosine, sine = angles[:, column, None].cos(), angles[:, column, None].sin()
        row_a, row_b = total[:, a].clone(), total[:, b].clone()
        total[:, a] = cosine * row_a - sine * row_b
        total[:, b] = sine * row_a + cosine * row_b
    return total


def view_maps(
    shape: Sequence[int],
    angles: Tensor,
    planes: Sequence[Plane],
    flips: Tensor,
    scale: Tensor,
    place: Tensor,
) -> tuple[Tensor, Tensor]:
    """The affine maps, for `resample`, of views that are turned, flipped, and zoomed into a part of the image.

    Args:
        shape: edges of the images in voxels.
        angles: (batch, plane) in radians.
        planes: the planes to turn in, one per column of `angles`.
        flips: (batch, d) booleans, the axes to flip.
        scale: (batch, 1) edges of what is seen as a share of the image's; above 1, the mirrored surroundings are seen.
        place: (batch, d) in -1 ... 1, where that part lies between the image's two ends.
    """
    matrices = (
        rotation_matrices(angles, planes, len(shape)) * torch.where(flips, -1.0, 1.0)[:, None, :]
    )
    room = (1 - scale).clamp(min=0) * torch.tensor(shape, dtype=torch.float32) / 2
    return matrices * scale[:, :, None], place * room


def resample(x: Tensor, matrices: Tensor, shifts: Tensor, mode: str = "bilinear") -> Tensor:
    """Map images affinely about their centres, in one interpolation; what lies outside is mirrored.

    The output at position `p` (in voxels from the centre) is the input at `matrix @ p + shift`.

    Args:
        x: (batch, channel, *space).
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        mode: "bilinear" (trilinear in 3D) or "nearest" (for labels).
    """
    if x.device.type == "cpu" and mode == "bilinear" and not x.requires_grad:
        return affine(x.float(), matrices, shifts).to(x.dtype)
    return _grid_sample(x, matrices, shifts, mode)


def _grid_sample(x: Tensor, matrices: Tensor, shifts: Tensor, mode: str) -> Tensor:
    """`resample` on any device, by torch."""
    d = x.ndim - 2
    half = torch.tensor(x.shape[2:], dtype=torch.float32) / 2
    # grid_sample wants positions in -1 ... 1, the last axis first
    scaled = matrices * half[None, None, :] / half[None, :, None]
    theta = torch.cat([scaled, (shifts / half)[:, :, None]], 2)
    theta = torch.cat([theta[:, :, :d].flip(1, 2), theta[:, :, d:].flip(1)], 2).to(x.device)
    # in bf16, positions are tenths of a voxel off, and torch 2.13's 2D grid_sample reads outside the image
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        sampled = F.grid_sample(
            x.float(), grid, mode=mode, padding_mode="reflection", align_corners=False
        )
    return sampled.to(x.dtype)
