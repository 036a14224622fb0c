"""Light augmentation on the device: rotation, zoom, flips, contrast, brightness and noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from selfvox.ops import intensity
from selfvox.ops.affine import resample, rotation_matrices
from selfvox.ops.planes import Plane

MAX_DEGREES = 15.0
ZOOM = (0.9, 1.1)
CONTRAST = (0.75, 1.25)  # factor
BRIGHTNESS = (-0.2, 0.2)  # added to standardised intensities
NOISE = (0.0, 0.1)  # standard deviation


def augment(
    image: Tensor, label: Tensor, planes: Sequence[Plane], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary a batch as scans vary among people and scanners; image and label move together.

    Rotation and zoom are one matrix per sample, so an image is resampled only once.

    Args:
        image: (batch, channel, *space).
        label: (batch, *space); resampled by nearest neighbour.
        planes: those of equal spacing, where a rotation preserves the anatomy's shape.
        rng: on the CPU.
    """
    count = len(image)
    d = image.ndim - 2
    angles = _uniform(rng, -MAX_DEGREES, MAX_DEGREES, (count, len(planes)))
    zooms = _uniform(rng, *ZOOM, (count, 1, 1))
    matrices = rotation_matrices(torch.deg2rad(angles), planes, d) * zooms
    shifts = torch.zeros(count, d)
    moved_image = resample(image, matrices, shifts)
    moved_label = resample(label[:, None].float(), matrices, shifts, mode="nearest")
    return _vary_intensity(moved_image, rng), moved_label[:, 0].to(label.dtype)


def augment_whole(image: Tensor, spacing: Tensor, rng: torch.Generator) -> Tensor:
    """Vary whole scans: no flip, rotation or zoom changes their class.

    Args:
        image: (batch, channel, *space).
        spacing: (batch, d) in mm: a rotation preserves shapes in mm, not in voxels.
        rng: on the CPU.
    """
    count = len(image)
    d = image.ndim - 2
    planes = list(itertools.combinations(range(d), 2))
    angles = _uniform(rng, -MAX_DEGREES, MAX_DEGREES, (count, len(planes)))
    flips = torch.where(_uniform(rng, 0, 1, (count, 1, d)) < 0.5, -1.0, 1.0)
    zooms = _uniform(rng, *ZOOM, (count, 1, 1))
    matrices = rotation_matrices(torch.deg2rad(angles), planes, d) * zooms * flips
    # the matrices are in mm; resampling takes voxels
    mm = spacing.cpu().float()
    matrices = matrices * mm[:, None, :] / mm[:, :, None]
    return _vary_intensity(resample(image, matrices, torch.zeros(count, d)), rng)


def _vary_intensity(image: Tensor, rng: torch.Generator) -> Tensor:
    """Change contrast and brightness and add noise, drawn for each image."""
    count = (len(image),)
    image = intensity.scale_contrast(image, _uniform(rng, *CONTRAST, count))
    image = intensity.shift_brightness(image, _uniform(rng, *BRIGHTNESS, count))
    return intensity.add_noise(image, _uniform(rng, *NOISE, count), rng)


def _uniform(rng: torch.Generator, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=rng)
