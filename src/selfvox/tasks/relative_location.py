"""Relative location: in which direction from one patch is another?

Doersch et al. 2015; in 3D: paper A, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.answer_head import answer_layer, answer_outcome
from selfvox.models.encoder import Encoder
from selfvox.ops.intensity import redraw_intensity
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import AXES
from selfvox.ops.tiles import (
    SMALLEST_TILE,
    draw_corners,
    gather_tiles,
    paste_tiles,
    shape_for_tiles,
    tile_grid,
)
from selfvox.ops.transfer import copy_together
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne

PANELS = 3  # queries of an image that a preview shows
GRID = 3  # tiles along each axis: the reference in the middle, its neighbours around it


@dataclass(frozen=True, kw_only=True)
class RelativeLocation(PretextTask):
    """Predict which neighbour of the central tile a tile is: 8 answers in 2D, 26 in 3D.

    Tiles never touch, so no edge continues from one to the next. Spacing need not be equal: all
    tiles have one shape.

    Good for large scans of one body region, on little hardware: tiles are small.
    """

    queries: Annotated[int, "neighbours to predict for each image in a step", AtLeastOne] = 8
    jitter: Annotated[
        float,
        "smallest share of a cell that its tile leaves free, to move in and as a gap",
        pydantic.Field(ge=0, le=0.5),
    ] = 0.125
    colour_jitter: Annotated[
        bool, "replace every tile's brightness and contrast by random ones, and remove its slope"
    ] = True

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> RelativeLocation:
        """Refuse crops with too small tiles, and more queries than there are neighbours."""
        needed = self.min_crop(crop)
        if needed != tuple(crop):
            raise UsageError(
                f"task relative_location: a crop of {' x '.join(map(str, crop))} voxels has no "
                f"room for {GRID} tiles of {SMALLEST_TILE} voxels along each axis; use --crop "
                f"{','.join(map(str, needed))} (prepare smaller scans with a finer --spacing)"
            )
        neighbours = GRID ** len(crop) - 1
        if self.queries > neighbours:
            raise UsageError(
                f"task.queries: {self.queries} are more than the {neighbours} neighbours; use fewer"
            )
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for tiles of 8 voxels along each axis."""
        return shape_for_tiles(crop, GRID, self.jitter)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """A tile."""
        return tile_grid(crop, GRID, self.jitter).tile

    def head(self, encoder: Encoder) -> nn.Module:
        """Two layers on the embeddings of two tiles, the reference first."""
        last = answer_layer(256, GRID**encoder.spatial_dims - 1)
        width = 2 * encoder.width
        # channel maxima are all large and alike: without the LayerNorm learning takes several times
        # as long
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256), nn.ReLU(), last)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut out the central tile of each image and `queries` of its neighbours.

        Returns:
            `tiles` (batch * (1 + queries), channel, *tile), each image's reference before its
            queries; their `corner` (batch, 1 + queries, d), for pictures; and `answer` (batch *
            queries,), the numbers of the neighbours.
        """
        shape = images.shape[2:]
        grid = tile_grid(shape, GRID, self.jitter)
        corner = draw_corners(grid, shape, len(images), rng)
        neighbours = GRID ** len(shape) - 1
        # the first of a random order: all queries of an image are different
        order = torch.rand(len(images), neighbours, generator=rng).argsort(1)
        answer = order[:, : self.queries]
        centre = torch.full((len(images), 1), neighbours // 2)
        chosen = torch.cat([centre, _tile_of(answer, len(shape))], 1)
        corner = corner.gather(1, chosen[:, :, None].expand(-1, -1, len(shape)))
        corner, answer = copy_together(images.device, corner, answer.flatten())
        tiles = gather_tiles(images, corner, grid.tile).flatten(0, 1)
        if self.colour_jitter:
            tiles = redraw_intensity(tiles, rng)
        return {
            "tiles": tiles,
            "corner": corner,
            "answer": answer,
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer."""
        embedded = encoder.embed(batch["tiles"]).view(-1, 1 + self.queries, encoder.width)
        reference = embedded[:, :1].expand(-1, self.queries, -1)
        pairs = torch.cat([reference, embedded[:, 1:]], 2).flatten(0, 1)
        return answer_outcome(head(pairs), batch["answer"])

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, its tiles in place, the reference, and the first queries with answers."""
        tiles_by_image = batch["tiles"].view(len(images), -1, *batch["tiles"].shape[1:])
        answers_by_image = batch["answer"].view(len(images), -1).tolist()
        rows = []
        for image, tiles, corners, answers in zip(
            images, tiles_by_image, batch["corner"], answers_by_image, strict=True
        ):
            row = [
                Panel("scan", image),
                Panel("in place", paste_tiles(_dimmed(image), tiles, corners)),
                Panel("centre", tiles[0]),
            ]
            shown = zip(answers[:PANELS], tiles[1:], strict=False)
            for answer, tile in shown:
                row.append(Panel(f"answer {answer}: {_direction(answer, image.ndim - 1)}", tile))
            rows.append(row)
        return rows


def _tile_of(answer: Tensor, spatial_dims: int) -> Tensor:
    """The number of a neighbour's tile in the grid: answers leave the central tile out."""
    tile: Tensor = answer + (answer >= GRID**spatial_dims // 2)
    return tile


def _dimmed(image: Tensor) -> Tensor:
    return torch.lerp(image.min(), image, 0.4)


def _direction(answer: int, spatial_dims: int) -> str:
    """`+x -z`: on which side of the centre the answer's tile is, along each axis."""
    tile = int(_tile_of(torch.tensor(answer), spatial_dims))
    words = []
    for axis in range(spatial_dims):
        step = tile // GRID ** (spatial_dims - 1 - axis) % GRID - 1
        if step:
            words.append("-+"[step > 0] + AXES[axis])
    return " ".join(words)
