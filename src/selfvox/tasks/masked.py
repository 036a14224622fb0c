"""Masked: what was in the hidden blocks of the image?

He et al. 2022; in 3D: Wald et al. 2025.
"""

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
from selfvox.ops.gather import mean_over_processes
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import Panel
from selfvox.restoration import RestorationTask

# added to a variance before dividing by it: the noise of empty air should not be predicted
FLAT = 1e-2


@dataclass(frozen=True, kw_only=True)
class Masked(RestorationTask):
    """Predict the hidden blocks of the image: the differences from each block's mean.

    A U-Net predicts them, and its decoder is fine-tuned too.

    Good for segmentation, which needs detail at every level of the network; works with any scan and
    any batch.
    """

    block: Annotated[int, "edge of a block, in voxels", pydantic.Field(ge=2)] = 8
    hidden: Annotated[float, "share of the blocks that are hidden", pydantic.Field(gt=0, lt=1)] = (
        0.6
    )

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Masked:
        """This task, if some blocks of such a crop are hidden and some are not."""
        blocks = math.prod(_blocks(crop, self.block))
        if blocks < 2:
            raise UsageError(
                f"task.block: one block of {self.block} voxels covers the crop of "
                f"{' x '.join(map(str, crop))}; use a smaller one"
            )
        if not 0 < round(self.hidden * blocks) < blocks:
            raise UsageError(
                f"task.hidden: {self.hidden:g} of {blocks} blocks hides none or all of them; use "
                "smaller blocks"
            )
        return self

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Choose the blocks to hide, as many in every image.

        Returns:
            `images` as they are, and `hidden` (batch, *blocks), True where a block is hidden; the
            last block of an axis may be cut off by the image's end.
        """
        grid = _blocks(images.shape[2:], self.block)
        blocks = math.prod(grid)
        order = torch.rand(len(images), blocks, generator=rng).argsort(1)
        # the same number of blocks in every image, which a threshold would not give
        rank = order.argsort(1)
        hidden = rank < round(self.hidden * blocks)
        return {"images": images, "hidden": hidden.view(-1, *grid).to(images.device)}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Mean squared error on hidden voxels, and the share of their variance that is explained.

        A prediction of each block's mean explains 0. Flat images have nothing to explain and count
        as 0; of nearly flat ones the share has no lower bound, so it is clamped to -1.
        """
        images = batch["images"]
        hidden = _voxels(batch["hidden"], images, self.block)
        prediction = head(encoder, fill(images, hidden))
        target = details(images, self.block)
        # a block that the image's end cuts off has fewer
        voxels = mean_over_processes(hidden.sum()) * images.shape[1]
        error = ((prediction - target).square() * hidden).sum() / voxels
        variance = (target.square() * hidden).sum() / voxels
        # both branches are computed, so the second must not divide by 0
        explained = torch.where(variance < FLAT, 0.0, 1 - error.detach() / variance.clamp(min=FLAT))
        return Outcome(error, {"explained": explained.clamp(min=-1)})

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, what the network sees of it, and what it has to predict."""
        hidden = _voxels(batch["hidden"], images, self.block)
        inputs = fill(images, hidden)
        targets = details(images, self.block) * hidden
        shares = hidden.float().flatten(1).mean(1).tolist()
        return [
            [
                Panel("scan", image),
                Panel(f"shown: {1 - share:.0%}", visible),
                Panel("target: details of the rest", target),
            ]
            for image, visible, target, share in zip(images, inputs, targets, shares, strict=True)
        ]


def fill(images: Tensor, hidden: Tensor) -> Tensor:
    """Images with hidden voxels replaced by the mean of the others, in each channel.

    Args:
        images: (batch, channel, *space).
        hidden: (batch, 1, *space) booleans.
    """
    space = tuple(range(2, images.ndim))
    mean = (images * ~hidden).sum(space, keepdim=True) / (~hidden).sum(space, keepdim=True)
    return torch.where(hidden, mean, images)


def details(images: Tensor, block: int) -> Tensor:
    """Each block of each channel standardised; flat blocks give about 0."""
    centred = images - _spread(_block_means(images, block), images, block)
    variance = _spread(_block_means(centred.square(), block), images, block)
    return centred / (variance + FLAT).sqrt()


def _blocks(shape: Sequence[int], block: int) -> tuple[int, ...]:
    """How many blocks there are along each axis; the last may be cut off."""
    return tuple(math.ceil(edge / block) for edge in shape)


def _block_means(images: Tensor, block: int) -> Tensor:
    """(batch, channel, *blocks): the mean of each block, over the voxels that it has."""
    pool = F.avg_pool3d if images.ndim == 5 else F.avg_pool2d
    # the voxels beyond the end do not count in the mean of the last block
    return pool(images.float(), block, ceil_mode=True, count_include_pad=False)


def _spread(values: Tensor, like: Tensor, block: int) -> Tensor:
    """Give every voxel of `like` its block's value; values are (batch, channel, *blocks)."""
    for axis, edge in enumerate(like.shape[2:], start=2):
        values = values.repeat_interleave(block, axis).narrow(axis, 0, edge)
    return values


def _voxels(hidden: Tensor, images: Tensor, block: int) -> Tensor:
    """(batch, 1, *space) booleans: is this voxel hidden?"""
    return _spread(hidden[:, None], images, block)
