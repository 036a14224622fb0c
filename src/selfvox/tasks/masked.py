"""Masked: what was in the hidden blocks of the image? (He et al. 2022; in 3D: Wald et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.pretext import Batch, Outcome, Panel, PretextTask

WIDTH = 16  # of the decoder, which is light so that the work is the encoder's
# variance added before dividing by it: the noise of empty air is not a question
FLAT = 1e-2


@dataclass(frozen=True, kw_only=True)
class Masked(PretextTask):
    """Fill in the blocks of the image that are hidden; how each differs from its own mean is what counts."""

    block: Annotated[int, "edge of a block, in voxels", pydantic.Field(ge=2)] = 8
    hidden: Annotated[float, "share of the blocks that are hidden", pydantic.Field(gt=0, lt=1)] = 0.6

    def suited_to(self, crop: Sequence[int], spacing_mm: Sequence[float]) -> Masked:
        """This task, if some blocks of such a crop are hidden and some are not."""
        blocks = math.prod(_blocks(crop, self.block))
        if blocks < 2:
            raise UsageError(
                f"task.block: one block of {self.block} voxels covers the crop of {' x '.join(map(str, crop))}; "
                "use a smaller one"
            )
        if not 0 < round(self.hidden * blocks) < blocks:
            raise UsageError(
                f"task.hidden: {self.hidden:g} of {blocks} blocks hides none or all of them; use smaller blocks"
            )
        return self

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        return Decoder(encoder)

    def ask(self, images: Tensor, rng: torch.Generator) -> Batch:
        """Choose the blocks to hide, as many in every image.

        Returns:
            `images` as they are, and `hidden` (batch, *blocks), True where a block is hidden; the last block of an axis
            may be cut off by the image's end.
        """
        grid = _blocks(images.shape[2:], self.block)
        blocks = math.prod(grid)
        rank = torch.rand(len(images), blocks, generator=rng).argsort(1).argsort(1)
        hidden = rank < round(self.hidden * blocks)
        return {"images": images, "hidden": hidden.view(-1, *grid).to(images.device)}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Mean squared error on hidden voxels; the share of their variance that is explained (0: each block's mean)."""
        assert isinstance(head, Decoder)
        images = batch["images"]
        hidden = _voxels(batch["hidden"], images, self.block)
        found = head(encoder(torch.where(hidden, head.fill.view(-1, *(1,) * (images.ndim - 2)), images)), images)
        target = details(images, self.block)
        voxels = hidden.sum() * images.shape[1]
        error = ((found - target).square() * hidden).sum() / voxels
        variance = (target.square() * hidden).sum() / voxels
        return Outcome(error, {"explained": 1 - error.detach() / variance.clamp(min=1e-6)})

    def panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, what the network sees of it, and what it has to fill in."""
        hidden = _voxels(batch["hidden"], images, self.block)
        grey = images.mean(tuple(range(1, images.ndim)), keepdim=True)
        shown, asked = torch.where(hidden, grey, images), details(images, self.block) * hidden
        return [
            [Panel("scan", image), Panel(f"shown: {1 - share:.0%}", seen), Panel("asked: details of the rest", detail)]
            for image, seen, detail, share in zip(
                images, shown, asked, hidden.float().flatten(1).mean(1).tolist(), strict=True
            )
        ]


class Decoder(nn.Module):
    """From the encoder's maps to an image: two 1-voxel convolutions per map, enlarged and summed."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        conv: type[nn.Conv3d | nn.Conv2d] = nn.Conv3d if encoder.spatial_dims == 3 else nn.Conv2d
        self.fill = nn.Parameter(torch.zeros(encoder.in_channels))  # what a hidden voxel looks like to the encoder
        self.levels = nn.ModuleList()
        for channels in encoder.channels:
            first, last = conv(channels, WIDTH, 1), conv(WIDTH, encoder.in_channels, 1)
            # small weights: an untrained network answers every block's mean
            for weights in last.parameters():
                nn.init.normal_(weights, std=1e-3)
            self.levels.append(nn.Sequential(first, nn.LeakyReLU(), last))

    def forward(self, maps: list[Tensor], like: Tensor) -> Tensor:
        """An image of the shape of `like`."""
        mode = "trilinear" if like.ndim == 5 else "bilinear"
        parts = [level(each).float() for level, each in zip(self.levels, maps, strict=True)]
        return torch.stack([F.interpolate(part, like.shape[2:], mode=mode) for part in parts]).sum(0)


def details(images: Tensor, block: int) -> Tensor:
    """Each block of each channel, less its mean and over its standard deviation; flat blocks give about 0."""
    away = images - _spread(_block_means(images, block), images, block)
    variance = _spread(_block_means(away.square(), block), images, block)
    return away / (variance + FLAT).sqrt()


def _blocks(shape: Sequence[int], block: int) -> tuple[int, ...]:
    """How many blocks there are along each axis; the last may be cut off."""
    return tuple(math.ceil(edge / block) for edge in shape)


def _block_means(images: Tensor, block: int) -> Tensor:
    pool = F.avg_pool3d if images.ndim == 5 else F.avg_pool2d
    return pool(images.float(), block, ceil_mode=True, count_include_pad=False)


def _spread(values: Tensor, like: Tensor, block: int) -> Tensor:
    """Give every voxel of `like` its block's value; values are (batch, channel, *blocks)."""
    for axis, edge in enumerate(like.shape[2:], start=2):
        values = values.repeat_interleave(block, axis).narrow(axis, 0, edge)
    return values


def _voxels(hidden: Tensor, images: Tensor, block: int) -> Tensor:
    """(batch, 1, *space) booleans: is this voxel hidden?"""
    return _spread(hidden[:, None], images, block)
