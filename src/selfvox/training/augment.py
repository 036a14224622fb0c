"""Light augmentation on the device: a small turn, a small zoom, brightness, contrast, noise; whole scans flip too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from selfvox.ops import intensity
from selfvox.ops.affine import resample, rotation_matrices
from selfvox.ops.planes import Plane


def augment(
    image: Tensor, label: Tensor, planes: Sequence[Plane], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change a batch as scans differ among people and scanners; image and label move alike, in one resampling.

    Args:
        image: (batch, channel, *space).
        label: (batch, *space); moved by nearest neighbour.
        planes: those of equal spacing, in which turning keeps the anatomy's shape.
        rng: on the CPU.
    """
    count, d = len(image), image.ndim - 2

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=rng)

    angles = torch.deg2rad(uniform(-15, 15, len(planes)))
    matrices = rotation_matrices(angles, planes, d) * uniform(0.9, 1.1, 1, 1)
    shifts = torch.zeros(count, d)
    image = resample(image, matrices, shifts)
    moved = resample(label[:, None].float(), matrices, shifts, mode="nearest")[:, 0].to(label.dtype)
    return _recolour(image, rng), moved


def augment_whole(image: Tensor, spacing: Tensor, rng: torch.Generator) -> Tensor:
    """Change whole scans, whose class no flip, turn or zoom changes; in one resampling.

    Args:
        image: (batch, channel, *space).
        spacing: (batch, d) in mm: a turn keeps shapes in mm, not in voxels.
        rng: on the CPU.
    """
    count, d = len(image), image.ndim - 2
    planes = list(itertools.combinations(range(d), 2))

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=rng)

    angles = torch.deg2rad(uniform(-15, 15, len(planes)))
    flips = torch.where(uniform(0, 1, 1, d) < 0.5, -1.0, 1.0)
    matrices = rotation_matrices(angles, planes, d) * uniform(0.9, 1.1, 1, 1) * flips
    mm = spacing.cpu().float()
    matrices = matrices * mm[:, None, :] / mm[:, :, None]
    return _recolour(resample(image, matrices, torch.zeros(count, d)), rng)


def _recolour(image: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast and noise, for each image its own."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(image)).uniform_(low, high, generator=rng)

    image = intensity.shift_brightness(
        intensity.scale_contrast(image, uniform(0.75, 1.25)), uniform(-0.2, 0.2)
    )
    return intensity.add_noise(image, uniform(0, 0.1), rng)
