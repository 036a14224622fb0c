"""Light augmentation of labelled crops on the device: a small turn, a small zoom, brightness, contrast, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfvox import intensity
from selfvox.spatial import Plane, resample, rotation_matrices


def augment(image: Tensor, label: Tensor, planes: Sequence[Plane], rng: torch.Generator) -> tuple[Tensor, Tensor]:
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
    image = intensity.brightness(intensity.contrast(image, uniform(0.75, 1.25)), uniform(-0.2, 0.2))
    return intensity.add_noise(image, uniform(0, 0.1), rng), moved
