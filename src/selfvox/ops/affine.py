"""Affine maps of image batches: rotations, zooms and views, in one resampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.ops.numba_resampling import resample_linearly, resample_nearest
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
    matrices = torch.eye(spatial_dims).repeat(len(angles), 1, 1)
    for column, (a, b) in enumerate(planes):
        cosine = angles[:, column, None].cos()
        sine = angles[:, column, None].sin()
        # copies: the first assignment would change what the second reads
        row_a = matrices[:, a].clone()
        row_b = matrices[:, b].clone()
        matrices[:, a] = cosine * row_a - sine * row_b
        matrices[:, b] = sine * row_a + cosine * row_b
    return matrices


def view_maps(
    shape: Sequence[int],
    angles: Tensor,
    planes: Sequence[Plane],
    flips: Tensor,
    scale: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """The affine maps, for `resample`, of rotated, flipped and zoomed views of images.

    Args:
        shape: edges of the images in voxels.
        angles: (batch, plane) in radians.
        planes: the planes to rotate in, one per column of `angles`.
        flips: (batch, d) booleans, the axes to flip.
        scale: (batch, 1) edges of the part as a share of the image's; above 1, the view shows the
            mirrored surroundings too.
        position: (batch, d) in -1 ... 1, of that part between the two ends of the image.

    Returns:
        Matrices (batch, d, d) and shifts (batch, d) in voxels.
    """
    rotations = rotation_matrices(angles, planes, len(shape))
    matrices = rotations * torch.where(flips, -1.0, 1.0)[:, None, :]
    # an enlarged view has no room to move in
    room = (1 - scale).clamp(min=0) * torch.tensor(shape, dtype=torch.float32) / 2
    return matrices * scale[:, :, None], position * room


def resample(x: Tensor, matrices: Tensor, shifts: Tensor, fill: Tensor | None = None) -> Tensor:
    """Map images affinely about their centres, by one linear interpolation.

    The output at position `p` (in voxels from the centre) is the input at `matrix @ p + shift`.

    Args:
        x: (batch, channel, *space).
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        fill: (batch, channel), the value outside the image; None: edges are mirrored.
    """
    # the compiled loop takes a ninth of the time, but computes no gradient
    if x.device.type == "cpu" and not x.requires_grad:
        return resample_linearly(x.float(), matrices, shifts, fill).to(x.dtype)
    # torch calls trilinear interpolation so, too
    return _grid_sample(x, matrices, shifts, "bilinear", fill)


def resample_label(
    label: Tensor, matrices: Tensor, shifts: Tensor, fill: float | None = None
) -> Tensor:
    """Map labels as `resample` maps their images: the value of the nearest voxel, unchanged.

    Args:
        label: (batch, *space), of any type.
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        fill: the value outside the image; None: edges are mirrored.
    """
    channel = label[:, None]
    if label.device.type == "cpu":
        return resample_nearest(channel, matrices, shifts, fill)[:, 0]
    fills = None
    if fill is not None:
        fills = torch.full((len(label), 1), float(fill), device=label.device)
    return _grid_sample(channel, matrices, shifts, "nearest", fills)[:, 0]


def _grid_sample(
    x: Tensor, matrices: Tensor, shifts: Tensor, mode: str, fill: Tensor | None = None
) -> Tensor:
    """`resample` on any device, by torch."""
    d = x.ndim - 2
    # made where the maps are, without a copy
    half = torch.cat([torch.full((1,), edge / 2, device=shifts.device) for edge in x.shape[2:]])
    # grid_sample wants positions in -1 ... 1, the last axis first
    scaled = matrices * half[None, None, :] / half[None, :, None]
    theta = torch.cat([scaled, (shifts / half)[:, :, None]], 2)
    theta = torch.cat([theta[:, :, :d].flip(1, 2), theta[:, :, d:].flip(1)], 2).to(x.device)
    # in bf16, positions are tenths of a voxel off, and torch 2.13's 2D grid_sample reads outside
    # the image
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        sampled = F.grid_sample(
            x.float(), grid, mode=mode, padding_mode="reflection", align_corners=False
        )
    if fill is not None:
        is_outside = (grid.abs() > 1).any(-1)[:, None]
        values = fill.to(x.device, sampled.dtype).view(*fill.shape, *(1,) * d)
        sampled = torch.where(is_outside, values, sampled)
    return sampled.to(x.dtype)
