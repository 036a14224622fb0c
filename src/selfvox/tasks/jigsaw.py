"""Jigsaw: by which permutation were the image's tiles shuffled? (Noroozi and Favaro 2016; paper A, 3.3)."""

from __future__ import annotations

import functools
import itertools
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
from selfvox.ops import intensity
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.tiles import draw_corners, gather_tiles, paste_tiles, shape_for_tiles, tile_grid
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne

CANDIDATES = 20_000  # orders to pick from where there are too many to list


@dataclass(frozen=True, kw_only=True)
class Jigsaw(PretextTask):
    """Tell by which of a fixed set of permutations the tiles of a grid were shuffled.

    Tiles never touch, so no edge goes on from one to the next. Spacing need not be equal: all tiles have one shape.

    Good for large scans of one body region; harder than relative location, and as free of spacing.
    """

    grid: Annotated[int, "tiles along each axis", pydantic.Field(ge=2, le=8)] = 3
    shuffles: Annotated[
        int,
        "different permutations of each image's tiles in a step; the tiles are encoded once",
        AtLeastOne,
    ] = 16
    permutations: Annotated[
        int, "permutations to tell apart: the answers", pydantic.Field(ge=2, le=1000)
    ] = 100
    jitter: Annotated[
        float,
        "least share of a cell that its tile leaves free, to move in and as a gap",
        pydantic.Field(ge=0, le=0.5),
    ] = 0.125
    colour_jitter: Annotated[
        bool, "give every tile a brightness and contrast of its own, whatever they were"
    ] = True
    seed: Annotated[int, "seed of the set of permutations", pydantic.Field(ge=0, lt=2**63)] = 0

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Jigsaw:
        """Refuse crops whose tiles would be too small, and more permutations than there are."""
        needed, orders = self.min_crop(crop), math.factorial(self.grid ** len(crop))
        if needed != tuple(crop):
            raise UsageError(
                f"task.grid: a crop of {' x '.join(map(str, crop))} voxels has no room for {self.grid} tiles of 8 "
                f"voxels along each axis; use --crop {','.join(map(str, needed))} (prepare smaller scans with a finer "
                "--spacing) or a smaller grid"
            )
        if self.permutations > orders:
            raise UsageError(
                f"task.permutations: {self.permutations} are more than the {orders} orders of "
                f"{self.grid ** len(crop)} tiles; use --task.permutations {orders} or fewer"
            )
        if self.shuffles > self.permutations:
            raise UsageError(
                f"task.shuffles: {self.shuffles} of an image cannot all differ, there are {self.permutations} "
                "permutations; use fewer"
            )
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for tiles of 8 voxels along each axis."""
        return shape_for_tiles(crop, self.grid, self.jitter)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """A tile."""
        return tile_grid(crop, self.grid, self.jitter).tile

    def table(self, spatial_dims: int) -> Tensor:
        """(answer, tile): which tile of the grid is shown at each place."""
        return permutation_set(self.grid**spatial_dims, self.permutations, self.seed)

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        last = nn.Linear(512, self.permutations)
        # small weights: an untrained network answers every permutation equally often
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        shown = self.grid**encoder.spatial_dims * encoder.width
        # channel maxima are all large and alike: without the LayerNorm answers stay at chance
        return nn.Sequential(nn.LayerNorm(shown), nn.Linear(shown, 512), nn.ReLU(), last)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut each image into tiles, and draw how they are shuffled.

        The encoder sees one tile at a time, so it makes no difference whether tiles are shuffled or their embeddings.

        Returns:
            `tiles` (batch * grid**d, channel, *tile), each image's in their true order; their `corner` (batch, grid**d,
            d), for pictures; and `answer` (batch, shuffles), the numbers of the permutations.
        """
        shape = images.shape[2:]
        grid, table = tile_grid(shape, self.grid, self.jitter), self.table(len(shape))
        corner = draw_corners(grid, shape, len(images), rng)
        answer = torch.rand(len(images), len(table), generator=rng).argsort(1)[:, : self.shuffles]
        tiles = gather_tiles(images, corner, grid.tile).flatten(0, 1)
        if self.colour_jitter:
            factor, shift = torch.rand(2, len(tiles), generator=rng)
            # jitter alone would only blur a brightness that runs through the scan
            tiles = intensity.standardise(tiles)
            tiles = intensity.shift_brightness(
                intensity.scale_contrast(tiles, 0.6 + 0.8 * factor), 0.6 * shift - 0.3
            )
        return {
            "tiles": tiles,
            "corner": corner.to(images.device),
            "answer": answer.to(images.device),
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer, from the embeddings in the order shown."""
        answer, table = batch["answer"], self.table(encoder.spatial_dims).to(batch["answer"].device)
        embedded = encoder.embed(batch["tiles"]).view(len(answer), -1, encoder.width)
        sample = torch.arange(len(answer), device=answer.device)[:, None, None]
        logits = head(embedded[sample, table[answer]].flatten(2).flatten(0, 1)).float()
        accuracy = (logits.argmax(1) == answer.flatten()).float().mean()
        chance = torch.tensor(1 / logits.shape[1], device=logits.device)
        return Outcome(
            F.cross_entropy(logits, answer.flatten()), {"accuracy": accuracy, "chance": chance}
        )

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, its tiles where they lie, and the tiles as first shuffled, with the answer."""
        table = self.table(images.ndim - 2).to(images.device)
        tiles = batch["tiles"].view(len(images), -1, *batch["tiles"].shape[1:])
        edges = torch.tensor(tiles.shape[3:])
        apart = edges // 8
        places = torch.cartesian_prod(*[torch.arange(self.grid)] * len(edges)) * (edges + apart)
        whole = (images.shape[1], *(self.grid * (edges + apart) - apart).tolist())

        def dark(shape: Sequence[int]) -> Tensor:
            return tiles.min().expand(*shape)

        return [
            [
                Panel("scan", image),
                Panel("in place", paste_tiles(dark(image.shape), shown, corner)),
                Panel(
                    f"answer {answer} of {self.permutations}",
                    paste_tiles(dark(whole), shown[table[answer]], places),
                ),
            ]
            for image, shown, corner, answer in zip(
                images, tiles, batch["corner"], batch["answer"][:, 0].tolist(), strict=True
            )
        ]


@functools.lru_cache(maxsize=8)
def permutation_set(tiles: int, count: int, seed: int) -> Tensor:
    """Orders of tiles that differ at many places: (count, tiles) integers, all rows distinct.

    Picked greedily (Noroozi and Favaro 2016): the next is the candidate whose smallest Hamming distance to those picked
    is largest; among equals, that of the largest mean. Candidates are all orders of up to 8 tiles, else a sample.
    """
    rng = torch.Generator().manual_seed(seed)
    if tiles <= 8:
        candidates = torch.tensor(list(itertools.permutations(range(tiles))))
    else:
        candidates = torch.rand(CANDIDATES, tiles, generator=rng).argsort(1)
    compared = candidates.to(torch.int16).T.contiguous()
    picked = [int(torch.randint(len(candidates), (), generator=rng))]
    smallest, total = (
        torch.full((len(candidates),), tiles),
        torch.zeros(len(candidates), dtype=torch.int64),
    )
    while len(picked) < count:
        distance = (compared != compared[:, picked[-1:]]).sum(0)
        smallest, total = torch.minimum(smallest, distance), total + distance
        picked.append(int((smallest * (tiles * count) + total).argmax()))
    return candidates[picked]
