"""Augmentation on the device: mirrored, rotated and zoomed scans, and varied intensities."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from selfvox.ops import intensity
from selfvox.ops.affine import resample, resample_label, rotation_matrices
from selfvox.ops.planes import Plane
from selfvox.ops.transfer import copy_together


class Change(NamedTuple):
    """A change of a magnitude between `low` and `high`, of a share of the samples."""

    low: float
    high: float
    probability: float = 1.0

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Magnitudes, and (batch,) booleans: which samples are changed."""
        magnitudes = torch.empty(shape).uniform_(self.low, self.high, generator=rng)
        if self.probability == 1:
            return magnitudes, torch.ones(shape[0], dtype=torch.bool)
        return magnitudes, torch.rand(shape[0], generator=rng) < self.probability


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The changes of samples, in the order in which they are made."""

    degrees: Change  # about each axis
    # a plane is rotated in if its shortest by its longest edge of a voxel is at least this
    evenness: float
    zoom: Change  # above 1, more of the surroundings is shown
    gamma: Change | None = None
    inverted_gamma: float = 0.0  # share of the gamma changes that start from the highest value
    contrast: Change  # factor
    brightness: Change  # added to standardised intensities
    blur: Change | None = None  # standard deviation, in shortest edges of a voxel
    resolution: Change | None = None  # share of the voxels that is kept along the finest axis
    noise: Change  # standard deviation
    fills_with_background: bool  # outside the image; otherwise edges are mirrored


LIGHT = Strength(
    degrees=Change(-15.0, 15.0),
    evenness=0.95,  # as `ops.planes.equal_spacing`
    zoom=Change(0.9, 1.1),
    contrast=Change(0.75, 1.25),
    brightness=Change(-0.2, 0.2),
    noise=Change(0.0, 0.1),
    fills_with_background=False,
)
# The changes and ranges of nnU-Net (Isensee et al. 2021, supplementary note 4). More samples are
# rotated and zoomed than its 0.2 and varied in contrast and brightness than its 0.15: a few hundred
# steps show a few scans, and each of them often.
STRONG = Strength(
    degrees=Change(-30.0, 30.0, 0.5),
    evenness=1 / 3,  # slices that are farther apart cannot be interpolated (nnU-Net's bound)
    zoom=Change(0.7, 1.4, 0.5),
    gamma=Change(0.7, 1.5, 0.4),
    inverted_gamma=0.25,
    contrast=Change(0.75, 1.25, 0.5),
    brightness=Change(-0.3, 0.3, 0.5),
    blur=Change(0.5, 1.0, 0.2),
    resolution=Change(0.5, 1.0, 0.25),
    noise=Change(0.0, 0.15, 0.3),
    # mirrored edges would show a left organ as a right one, with the label of the left
    fills_with_background=True,
)
# by the setting `augment`
STRENGTHS = {"none": None, "light": LIGHT, "strong": STRONG}


@dataclass(frozen=True)
class Augmentation:
    """How the samples of a fine-tuning are varied.

    Args:
        strength: how far; None: not beyond mirroring.
        mirror: axes that are mirrored, each in half of the samples.
    """

    strength: Strength | None
    mirror: tuple[int, ...] = ()


def augment(
    image: Tensor,
    label: Tensor,
    spacing: Tensor,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Vary a batch as scans vary among people and scanners; image and label move together.

    Args:
        image: (batch, channel, *space).
        label: (batch, *space); resampled by nearest neighbour.
        spacing: (batch, d) in mm: a rotation preserves shapes in mm, not in voxels.
        augmentation: what to do.
        rng: on the CPU.
    """
    strength = augmentation.strength
    matrices = _draw_matrices(strength, augmentation.mirror, spacing, rng)
    moves = _drawn_moves(matrices, _move_label, strength)
    changes = [
        *_drawn_moves(matrices, _move_image, strength),
        *_draw_intensities(image, spacing, strength, rng),
    ]
    drawn = _on_device(image.device, [*moves, *changes])
    label = _apply(label.clone(), drawn[: len(moves)])
    return _apply(image.clone(), drawn[len(moves) :]), label


def augment_whole(
    image: Tensor, spacing: Tensor, augmentation: Augmentation, rng: torch.Generator
) -> Tensor:
    """Vary whole scans, which have a class and no label image.

    Args:
        image: (batch, channel, *space).
        spacing: (batch, d) in mm, as in `augment`.
        augmentation: what to do.
        rng: on the CPU.
    """
    strength = augmentation.strength
    if strength is LIGHT:
        # no label is cut to steps, so light rotates in every plane
        strength = replace(LIGHT, evenness=0.0)
    matrices = _draw_matrices(strength, augmentation.mirror, spacing, rng)
    changes = [
        *_drawn_moves(matrices, _move_image, strength),
        *_draw_intensities(image, spacing, strength, rng),
    ]
    return _apply(image.clone(), _on_device(image.device, changes))


class _Drawn(NamedTuple):
    """A change of some samples, as it was drawn."""

    change: Callable[..., Tensor]  # of these samples and their magnitudes
    samples: Tensor | None  # their numbers; None: all
    magnitudes: Sequence[Tensor]


def _drawn(change: Callable[..., Tensor], is_changed: Tensor, *magnitudes: Tensor) -> list[_Drawn]:
    """The change where `is_changed` (batch,), of magnitudes (batch, ...); none if it is nowhere."""
    if is_changed.all():
        return [_Drawn(change, None, magnitudes)]
    if not is_changed.any():
        return []
    samples = is_changed.nonzero().flatten()
    return [_Drawn(change, samples, [values[samples] for values in magnitudes])]


def _on_device(device: torch.device, drawn: Sequence[_Drawn]) -> list[_Drawn]:
    """The same with all numbers on the device, by a single copy."""
    if not drawn:
        return []
    numbers: list[Tensor] = []
    for change in drawn:
        if change.samples is not None:
            numbers.append(change.samples)
        numbers += change.magnitudes
    copies = iter(copy_together(device, *numbers))
    return [
        _Drawn(
            change.change,
            None if change.samples is None else next(copies),
            [next(copies) for _ in change.magnitudes],
        )
        for change in drawn
    ]


def _apply(x: Tensor, drawn: Sequence[_Drawn]) -> Tensor:
    """`x` with all changes, one after the other; it may be overwritten."""
    for change, samples, magnitudes in drawn:
        if samples is None:
            x = change(x, *magnitudes)
        else:
            x[samples] = change(x[samples], *magnitudes)
    return x


def _draw_matrices(
    strength: Strength | None, mirror: Sequence[int], spacing: Tensor, rng: torch.Generator
) -> Tensor:
    """Matrices (batch, d, d), in voxels, that rotate, mirror and zoom.

    All three are one matrix per sample, so a scan is resampled only once.
    """
    count, d = spacing.shape
    if strength is None:
        return torch.eye(d) * _draw_flips(mirror, count, d, rng)
    mm = spacing.cpu().float()
    planes = list(itertools.combinations(range(d), 2))
    degrees, is_rotated = strength.degrees.draw((count, len(planes)), rng)
    angles = torch.deg2rad(degrees) * (is_rotated[:, None] & _is_even(mm, planes, strength))
    flips = _draw_flips(mirror, count, d, rng)
    zooms, is_zoomed = strength.zoom.draw((count,), rng)
    zooms = torch.where(is_zoomed, zooms, 1.0)
    matrices = rotation_matrices(angles, planes, d) * zooms[:, None, None] * flips
    # the matrices are in mm; resampling takes voxels
    return matrices * (mm[:, None, :] / mm[:, :, None])


def _is_even(mm: Tensor, planes: Sequence[Plane], strength: Strength) -> Tensor:
    """(batch, plane) booleans: whether the spacings in a plane are near enough to rotate in it."""
    edges = mm[:, torch.tensor(planes)]  # (batch, plane, 2)
    return edges.amin(2) >= strength.evenness * edges.amax(2)


def _draw_flips(mirror: Sequence[int], count: int, d: int, rng: torch.Generator) -> Tensor:
    """(batch, 1, d), -1 along the axes to mirror; nothing is drawn if there are none."""
    flips = torch.ones(count, 1, d)
    if mirror:
        is_flipped = torch.rand(count, 1, d, generator=rng) < 0.5
        axes = list(mirror)
        flips[:, :, axes] = torch.where(is_flipped[:, :, axes], -1.0, 1.0)
    return flips


def _drawn_moves(
    matrices: Tensor, move: Callable[..., Tensor], strength: Strength | None
) -> list[_Drawn]:
    is_moved = (matrices != torch.eye(matrices.shape[1])).flatten(1).any(1)
    fills = strength is not None and strength.fills_with_background
    return _drawn(partial(move, fills=fills), is_moved, matrices)


def _move_image(part: Tensor, maps: Tensor, fills: bool) -> Tensor:
    """Every image mapped by its matrix; with `fills`, its lowest value is outside of it."""
    fill = part.flatten(2).amin(2) if fills else None
    return resample(part, maps, maps.new_zeros(maps.shape[:2]), fill)


def _move_label(part: Tensor, maps: Tensor, fills: bool) -> Tensor:
    """Every label mapped by its matrix; with `fills`, 0 is outside of it."""
    return resample_label(part, maps, maps.new_zeros(maps.shape[:2]), fill=0 if fills else None)


def _draw_intensities(
    image: Tensor, spacing: Tensor, strength: Strength | None, rng: torch.Generator
) -> list[_Drawn]:
    """Changes of the intensities of each image by its own draws; noise is drawn when added."""
    if strength is None:
        return []
    drawn: list[_Drawn] = []
    count = (len(image),)
    if strength.gamma is not None:
        powers, is_changed = strength.gamma.draw(count, rng)
        is_inverted = torch.rand(count, generator=rng) < strength.inverted_gamma
        drawn += _drawn(intensity.change_gamma, is_changed, powers, is_inverted)
    factors, is_changed = strength.contrast.draw(count, rng)
    drawn += _drawn(intensity.scale_contrast, is_changed, factors)
    shifts, is_changed = strength.brightness.draw(count, rng)
    drawn += _drawn(intensity.shift_brightness, is_changed, shifts)
    # shortest edge of a voxel by that along each axis (batch, d)
    fineness = (spacing.amin(1, keepdim=True) / spacing).cpu().float()
    if strength.blur is not None:
        widths, is_changed = strength.blur.draw(count, rng)
        # as many mm along every axis
        drawn += _drawn(intensity.blur, is_changed, widths[:, None] * fineness)
    if strength.resolution is not None:
        shares, is_changed = strength.resolution.draw(count, rng)
        # coarse axes already are what the finest one becomes
        kept = (shares[:, None] / fineness).clamp(max=1)
        voxels = intensity.kept_voxels(image.shape[2:], kept)
        drawn += _drawn(intensity.lower_resolution, is_changed, *voxels)
    sigmas, is_changed = strength.noise.draw(count, rng)
    return drawn + _drawn(partial(intensity.add_noise, rng=rng), is_changed, sigmas)
