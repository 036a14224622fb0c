"""Genesis: what did the image look like before it was deformed?

Models Genesis: Zhou et al. 2019, 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.transfer import copy_together
from selfvox.pretext import Panel
from selfvox.restoration import RestorationTask

Share = pydantic.Field(ge=0, le=1)

# small: texture is lost, the shape of an organ is not
WINDOW = 4  # voxels; edge of the windows that are shuffled
ORDERS = 512  # different orders that a batch shuffles its windows by
# steps of a 256th: as fine as an 8-bit image
NODES = 257  # of the table of an intensity curve
BOXES = 5  # painted in an image
# edges of boxes, as shares of the image's: painted inside, or kept while the rest is painted
INSIDE = (1 / 6, 1 / 3)
OUTSIDE = (3 / 7, 4 / 7)
FLAT = 1e-6  # a smaller variance is none: there is nothing to explain


@dataclass(frozen=True, kw_only=True)
class Genesis(RestorationTask):
    """Restore the image from a deformed copy of itself.

    A copy is deformed by shuffled voxels, a monotone intensity curve, and boxes that are painted
    inside or outside. A U-Net restores it, and its decoder is fine-tuned too.

    Good for segmentation, as masked is: it asks for texture, contrast and context at once; works
    with any scan and any batch.
    """

    shuffled: Annotated[float, "share of the images with voxels shuffled locally", Share] = 0.5
    curved: Annotated[float, "share of the images with intensities changed by a curve", Share] = 0.9
    painted: Annotated[float, "share of the images that are painted", Share] = 0.9
    outside: Annotated[
        float, "share of the painted images that are painted outside of boxes, not inside", Share
    ] = 0.8

    def __post_init__(self) -> None:
        if not self.shuffled + self.curved + self.painted:
            raise ValueError(
                "painted: nothing is deformed if task.shuffled and task.curved are 0 too; raise one"
            )

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Deform each image.

        Returns:
            `target`, the images as they are, and `shown`, deformed.
        """
        count = len(images)
        shape = images.shape[2:]

        def chosen(share: float) -> Tensor:
            rows = torch.rand(count, generator=rng) < share
            return rows.view(-1, *(1,) * (images.ndim - 1))

        # every change is drawn for every image, so that a choice moves no later draw
        is_shuffled = chosen(self.shuffled)
        offset, orders, choice = _draw_orders(images, rng)
        control = torch.rand(count, 2, 2, generator=rng)
        falling = torch.rand(count, generator=rng) < 0.5
        is_curved = chosen(self.curved)
        is_painted = chosen(self.painted)
        boxes = _boxes(shape, count, INSIDE, rng)
        kept = _boxes(shape, count, OUTSIDE, rng)
        outside = chosen(self.outside)
        level = torch.rand(count, generator=rng)
        numbers = copy_together(
            images.device,
            *(is_shuffled, orders, choice, is_curved, curve_table(control, falling)),
            *(is_painted, boxes, kept, outside, level),
        )
        is_shuffled, orders, choice, is_curved, curve = numbers[:5]
        is_painted, boxes, kept, outside, level = numbers[5:]
        shown = shuffle_windows(images, orders[choice], offset)
        shown = torch.where(is_shuffled, shown, images)
        shown = torch.where(is_curved, apply_curve(shown, curve), shown)
        inside = torch.where(outside, ~fill_boxes(kept, shape), fill_boxes(boxes, shape))
        return {"target": images, "shown": paint(shown, inside & is_painted, level)}

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Mean squared error, and the share of the images' variance that is explained.

        A prediction of each channel's mean explains 0. Flat images have nothing to explain and
        count as 0; the share has no lower bound, so it is clamped to -1.
        """
        images = batch["target"].float()
        error = (head(encoder, batch["shown"]) - images).square().mean()
        mean = images.mean(tuple(range(2, images.ndim)), keepdim=True)
        variance = (images - mean).square().mean()
        explained = torch.where(variance < FLAT, 0.0, 1 - error.detach() / variance.clamp(min=FLAT))
        return Outcome(error, {"explained": explained.clamp(min=-1)})

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, the target, what the network sees of it, and what has to be restored."""
        return [
            [
                Panel("target: scan", image),
                Panel("shown", shown),
                Panel("change to undo", image - shown),
            ]
            for image, shown in zip(images, batch["shown"], strict=True)
        ]


def curve_table(control: Tensor, falling: Tensor) -> Tensor:
    """Monotone intensity curves: cubic Bezier curves from (0, 0) to (1, 1).

    Control points in the unit square make both coordinates monotone.

    Args:
        control: (curve, 2, 2), the two control points (x, y), 0 to 1.
        falling: (curve,), whether it is turned upside down, from (0, 1) to (1, 0).

    Returns:
        (curve, NODES): the values at NODES even steps from 0 to 1.
    """
    t = torch.linspace(0, 1, NODES)
    first = 3 * (1 - t).square() * t
    second = 3 * (1 - t) * t.square()
    x, y = (control[:, :1, axis] * first + control[:, 1:, axis] * second + t**3 for axis in (0, 1))
    even = t.expand_as(x).contiguous()
    right = torch.searchsorted(x.contiguous(), even).clamp(1, NODES - 1)
    left_x, right_x = x.gather(1, right - 1), x.gather(1, right)
    share = (even - left_x) / (right_x - left_x).clamp(min=1e-9)
    table = torch.lerp(y.gather(1, right - 1), y.gather(1, right), share.clamp(0, 1))
    return torch.where(falling[:, None], 1 - table, table)


def apply_curve(x: Tensor, table: Tensor) -> Tensor:
    """Map intensities by a curve for each image, between the extremes of each channel.

    Args:
        x: (batch, channel, *space).
        table: (batch, NODES), from `curve_table`.
    """
    low, high = _extremes(x)
    # a flat channel has no range to divide by
    position = (x - low) / (high - low).clamp(min=1e-6) * (NODES - 1)
    left = position.long().clamp(0, NODES - 2)
    share = position - left
    rows = left.flatten(1)
    values = torch.lerp(table.gather(1, rows), table.gather(1, rows + 1), share.flatten(1))
    return low + values.view_as(x) * (high - low)


def shuffle_windows(x: Tensor, order: Tensor, offset: Sequence[int]) -> Tensor:
    """Reorder the voxels within each window; voxels beyond the last window stay.

    Args:
        x: (batch, channel, *space).
        order: (batch, window, WINDOW**d), which voxel of its window each place gets; windows and
            voxels with the last axis counting fastest.
        offset: first voxel of the first window, for each axis.
    """
    d = x.ndim - 2
    grid = [(edge - start) // WINDOW for edge, start in zip(x.shape[2:], offset, strict=True)]
    shuffled = x.clone()
    region = shuffled
    for axis, (start, count) in enumerate(zip(offset, grid, strict=True), start=2):
        region = region.narrow(axis, start, count * WINDOW)
    # (batch, channel, grid, WINDOW, grid, WINDOW, ...) -> (batch, channel, *grid, *window)
    split = region.reshape(*x.shape[:2], *itertools.chain(*((count, WINDOW) for count in grid)))
    axes = (0, 1, *range(2, 2 + 2 * d, 2), *range(3, 3 + 2 * d, 2))
    windows = split.permute(axes)
    rows = windows.reshape(*x.shape[:2], order.shape[1], WINDOW**d)
    reordered = rows.gather(3, order[:, None].expand_as(rows)).view(windows.shape)
    back = torch.tensor(axes).argsort().tolist()
    region.copy_(reordered.permute(back).reshape(region.shape))
    return shuffled


def fill_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """(batch, 1, *space) booleans: is this voxel in any of the boxes (batch, box, 2, d)?

    A box is its first voxel and the first one after its end.
    """
    device = boxes.device
    inside = torch.ones(*boxes.shape[:2], *(1,) * len(shape), dtype=torch.bool, device=device)
    for axis, edge in enumerate(shape):
        voxel = torch.arange(edge, device=device)
        start, end = boxes[:, :, :, axis, None].unbind(2)
        along = (voxel >= start) & (voxel < end)
        place = [1] * len(shape)
        place[axis] = edge
        inside = inside & along.view(*boxes.shape[:2], *place)
    return inside.any(1, keepdim=True)


def paint(x: Tensor, region: Tensor, level: Tensor) -> Tensor:
    """One value for all voxels of a region, in each channel.

    Args:
        x: (batch, channel, *space).
        region: (batch, 1, *space) booleans.
        level: (batch,), from 0, the darkest value of the channel, to 1, its brightest.
    """
    low, high = _extremes(x)
    value = torch.lerp(low, high, level.view(-1, *(1,) * (x.ndim - 1)))
    return torch.where(region, value, x)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each channel."""
    space = tuple(range(2, x.ndim))
    return x.amin(space, keepdim=True), x.amax(space, keepdim=True)


def _draw_orders(x: Tensor, rng: torch.Generator) -> tuple[list[int], Tensor, Tensor]:
    """How half of the windows of images are shuffled, from a random offset that all share.

    Returns:
        The offset, orders (order, WINDOW**d), and the number of each window's order (batch,
        window); on the CPU.
    """
    d = x.ndim - 2
    offset = torch.randint(WINDOW, (d,), generator=rng).tolist()
    windows = 1
    for edge, start in zip(x.shape[2:], offset, strict=True):
        windows *= (edge - start) // WINDOW
    # few orders, drawn once: an order of its own for every window would take longer than the step
    orders = torch.rand(ORDERS, WINDOW**d, generator=rng).argsort(1)
    orders = torch.cat([torch.arange(WINDOW**d)[None], orders])
    choice = torch.randint(1, ORDERS + 1, (len(x), windows), generator=rng)
    choice = choice * (torch.rand(len(x), windows, generator=rng) < 0.5)
    return offset, orders, choice


def _boxes(
    shape: Sequence[int], count: int, share: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """(count, BOXES, 2, d): random boxes, with edges of these shares of the image's."""
    space = torch.tensor(shape)
    shares = torch.empty(count, BOXES, len(shape)).uniform_(*share, generator=rng)
    edges = (shares * space).round().long().clamp(min=1)
    start = (torch.rand(count, BOXES, len(shape), generator=rng) * (space - edges + 1)).long()
    return torch.stack([start, start + edges], 2)
