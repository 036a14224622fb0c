"""Jigsaw: by which permutation were the image's tiles shuffled?

Noroozi and Favaro 2016; in 3D: paper A, section 3.3.
"""

from __future__ import annotations

import functools
import itertools
import math
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

CANDIDATES = 20_000  # orders to pick from where there are too many to list


@dataclass(frozen=True, kw_only=True)
class Jigsaw(PretextTask):
    """Predict by which of a fixed set of permutations the tiles of a grid were shuffled.

    Tiles never touch, so no edge continues from one to the next. Spacing need not be equal: all
    tiles have one shape.

    Good for large scans of one body region; harder than relative location, and works at any
    spacing.
    """

    grid: Annotated[int, "tiles along each axis", pydantic.Field(ge=2, le=8)] = 3
    shuffles: Annotated[
        int,
        "different permutations of each image's tiles in a step; the tiles are encoded once",
        AtLeastOne,
    ] = 16
    permutations: Annotated[
        int, "permutations to choose from: the answers", pydantic.Field(ge=2, le=1000)
    ] = 100
    jitter: Annotated[
        float,
        "smallest share of a cell that its tile leaves free, to move in and as a gap",
        pydantic.Field(ge=0, le=0.5),
    ] = 0.125
    colour_jitter: Annotated[
        bool, "replace every tile's brightness and contrast by random ones, and remove its slope"
    ] = True
    seed: Annotated[int, "seed of the set of permutations", pydantic.Field(ge=0, lt=2**63)] = 0

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Jigsaw:
        """Refuse crops with too small tiles, and more permutations than there are."""
        needed = self.min_crop(crop)
        if needed != tuple(crop):
            raise UsageError(
                f"task.grid: a crop of {' x '.join(map(str, crop))} voxels has no room for "
                f"{self.grid} tiles of {SMALLEST_TILE} voxels along each axis; use --crop "
                f"{','.join(map(str, needed))} (prepare smaller scans with a finer --spacing) or a "
                "smaller grid"
            )
        tiles = self.grid ** len(crop)
        orders = math.factorial(tiles)
        if self.permutations > orders:
            raise UsageError(
                f"task.permutations: {self.permutations} are more than the {orders} orders of "
                f"{tiles} tiles; use --task.permutations {orders} or fewer"
            )
        if self.shuffles > self.permutations:
            raise UsageError(
                f"task.shuffles: {self.shuffles} of an image cannot all differ, there are "
                f"{self.permutations} permutations; use fewer"
            )
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for tiles of 8 voxels along each axis."""
        return shape_for_tiles(crop, self.grid, self.jitter)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """A tile."""
        return tile_grid(crop, self.grid, self.jitter).tile

    def table(self, spatial_dims: int) -> Tensor:
        """(answer, tile): which tile of the grid is shown at each position."""
        return permutation_set(self.grid**spatial_dims, self.permutations, self.seed)

    def head(self, encoder: Encoder) -> nn.Module:
        """Two layers on the embeddings of all tiles, in the order shown."""
        last = answer_layer(512, self.permutations)
        width = self.grid**encoder.spatial_dims * encoder.width
        # channel maxima are all large and alike: without the LayerNorm answers stay at chance
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 512), nn.ReLU(), last)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut each image into tiles, and draw how they are shuffled.

        The encoder sees one tile at a time, so it makes no difference whether tiles are shuffled or
        their embeddings.

        Returns:
            `tiles` (batch * grid**d, channel, *tile), each image's in their true order; their
            `corner` (batch, grid**d, d), for pictures; and `answer` (batch, shuffles), the numbers
            of the permutations.
        """
        shape = images.shape[2:]
        grid = tile_grid(shape, self.grid, self.jitter)
        corner = draw_corners(grid, shape, len(images), rng)
        order = torch.rand(len(images), self.permutations, generator=rng).argsort(1)
        answer = order[:, : self.shuffles]
        corner, answer = copy_together(images.device, corner, answer)
        tiles = gather_tiles(images, corner, grid.tile).flatten(0, 1)
        if self.colour_jitter:
            tiles = redraw_intensity(tiles, rng)
        return {
            "tiles": tiles,
            "corner": corner,
            "answer": answer,
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer, from the embeddings in the order shown."""
        answer = batch["answer"]
        table = self.table(encoder.spatial_dims).to(answer.device)
        embedded = encoder.embed(batch["tiles"]).view(len(answer), -1, encoder.width)
        sample = torch.arange(len(answer), device=answer.device)[:, None, None]
        # embeddings are shuffled, not tiles: each tile is encoded once for all permutations
        shuffled = embedded[sample, table[answer]]  # (batch, shuffles, tile, width)
        return answer_outcome(head(shuffled.flatten(2).flatten(0, 1)), answer.flatten())

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, its tiles in place, and the tiles as first shuffled, with the answer."""
        table = self.table(images.ndim - 2).to(images.device)
        tiles_by_image = batch["tiles"].view(len(images), -1, *batch["tiles"].shape[1:])
        answers = batch["answer"][:, 0].tolist()
        darkest = tiles_by_image.min()
        rows = []
        for image, tiles, corners, answer in zip(
            images, tiles_by_image, batch["corner"], answers, strict=True
        ):
            in_place = paste_tiles(darkest.expand_as(image), tiles, corners)
            shuffled = _mosaic(tiles[table[answer]], self.grid, darkest)
            rows.append(
                [
                    Panel("scan", image),
                    Panel("in place", in_place),
                    Panel(f"answer {answer} of {self.permutations}", shuffled),
                ]
            )
        return rows


def _mosaic(tiles: Tensor, grid: int, background: Tensor) -> Tensor:
    """Tiles (tile, channel, *edges) side by side on a grid, an eighth of a tile between them."""
    edges = torch.tensor(tiles.shape[2:])
    gap = edges // 8
    cells = torch.cartesian_prod(*[torch.arange(grid)] * len(edges))
    shape = (grid * (edges + gap) - gap).tolist()
    return paste_tiles(background.expand(tiles.shape[1], *shape), tiles, cells * (edges + gap))


@functools.lru_cache(maxsize=8)
def permutation_set(tiles: int, count: int, seed: int) -> Tensor:
    """Orders of tiles that differ at many positions: (count, tiles) integers, all rows distinct.

    Picked greedily (Noroozi and Favaro 2016): the next is the candidate with the largest of the
    smallest Hamming distances to those picked; among equals, that of the largest mean. Candidates
    are all orders of up to 8 tiles, else a sample.
    """
    rng = torch.Generator().manual_seed(seed)
    if tiles <= 8:
        candidates = torch.tensor(list(itertools.permutations(range(tiles))))
    else:
        candidates = torch.rand(CANDIDATES, tiles, generator=rng).argsort(1)
    # (tile, candidate)
    # 16 bits and one tile after the other: the comparison is read once per pick
    by_tile = candidates.to(torch.int16).T.contiguous()
    picked = [int(torch.randint(len(candidates), (), generator=rng))]
    smallest = torch.full((len(candidates),), tiles)
    total = torch.zeros(len(candidates), dtype=torch.int64)
    while len(picked) < count:
        distance = (by_tile != by_tile[:, picked[-1:]]).sum(0)
        smallest = torch.minimum(smallest, distance)
        total += distance
        # total is below tiles * count, so it decides only among equal smallest distances
        picked.append(int((smallest * (tiles * count) + total).argmax()))
    return candidates[picked]
