"""Relative location: where does one patch lie, seen from another? (Doersch et al. 2015; paper A, 3.2)."""

from __future__ import annotations

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
from selfvox.ops.planes import AXES
from selfvox.ops.tiles import draw_corners, gather_tiles, paste_tiles, shape_for_tiles, tile_grid
from selfvox.pretext import Panel, PretextTask
from selfvox.settings.verbs import AtLeastOne

GRID = 3  # tiles along each axis: the reference in the middle, its neighbours around it


@dataclass(frozen=True, kw_only=True)
class RelativeLocation(PretextTask):
    """Tell which neighbour of the central tile a tile is: 8 answers in 2D, 26 in 3D.

    Tiles never touch, so no edge goes on from one to the next. Spacing need not be equal: all tiles have one shape.

    Good for large scans of one body region, on little hardware: tiles are small.
    """

    queries: Annotated[int, "neighbours asked about for each image in a step", AtLeastOne] = 1
    jitter: Annotated[
        float,
        "least share of a cell that its tile leaves free, to move in and as a gap",
        pydantic.Field(ge=0, le=0.5),
    ] = 0.125
    colour_jitter: Annotated[
        bool, "give every tile a brightness and contrast of its own, whatever they were"
    ] = True

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> RelativeLocation:
        """Refuse crops whose tiles would be too small, and more queries than there are neighbours."""
        needed, answers = self.min_crop(crop), GRID ** len(crop) - 1
        if needed != tuple(crop):
            raise UsageError(
                f"task relative_location: a crop of {' x '.join(map(str, crop))} voxels has no room for {GRID} tiles "
                f"of 8 voxels along each axis; use --crop {','.join(map(str, needed))} (prepare smaller scans with a "
                "finer --spacing)"
            )
        if self.queries > answers:
            raise UsageError(
                f"task.queries: {self.queries} are more than the {answers} neighbours; use fewer"
            )
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for tiles of 8 voxels along each axis."""
        return shape_for_tiles(crop, GRID, self.jitter)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """A tile."""
        return tile_grid(crop, GRID, self.jitter).tile

    def head(self, encoder: Encoder) -> nn.Module:  # noqa: D102
        last = nn.Linear(256, GRID**encoder.spatial_dims - 1)
        # small weights: an untrained network answers every place equally often
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        # channel maxima are all large and alike: without the LayerNorm learning takes several times as long
        return nn.Sequential(
            nn.LayerNorm(2 * encoder.width), nn.Linear(2 * encoder.width, 256), nn.ReLU(), last
        )

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Cut out the central tile of each image and `queries` of its neighbours.

        Returns:
            `tiles` (batch * (1 + queries), channel, *tile), each image's reference before its queries; their `corner`
            (batch, 1 + queries, d), for pictures; and `answer` (batch * queries,), the neighbours' places.
        """
        shape = images.shape[2:]
        grid, answers = tile_grid(shape, GRID, self.jitter), GRID ** len(shape) - 1
        corner = draw_corners(grid, shape, len(images), rng)
        answer = torch.rand(len(images), answers, generator=rng).argsort(1)[:, : self.queries]
        centre = answers // 2
        shown = torch.cat([torch.full((len(images), 1), centre), answer + (answer >= centre)], 1)
        corner = corner.gather(1, shown[:, :, None].expand(-1, -1, len(shape)))
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
            "answer": answer.flatten().to(images.device),
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """Cross-entropy of the answer."""
        embedded = encoder.embed(batch["tiles"]).view(-1, 1 + self.queries, encoder.width)
        reference = embedded[:, :1].expand(-1, self.queries, -1)
        logits = head(torch.cat([reference, embedded[:, 1:]], 2).flatten(0, 1)).float()
        accuracy = (logits.argmax(1) == batch["answer"]).float().mean()
        chance = torch.tensor(1 / logits.shape[1], device=logits.device)
        return Outcome(
            F.cross_entropy(logits, batch["answer"]), {"accuracy": accuracy, "chance": chance}
        )

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """Each image, where its tiles lie, the reference, and the queries with their answers."""
        tiles = batch["tiles"].view(len(images), -1, *batch["tiles"].shape[1:])
        answers = batch["answer"].view(len(images), -1).tolist()
        return [
            [
                Panel("scan", image),
                Panel("in place", paste_tiles(_dimmed(image), shown, corner)),
                Panel("centre", shown[0]),
            ]
            + [
                Panel(f"answer {n}: {_words(n, image.ndim - 1)}", tile)
                for n, tile in zip(row, shown[1:], strict=True)
            ]
            for image, shown, corner, row in zip(
                images, tiles, batch["corner"], answers, strict=True
            )
        ]


def _dimmed(image: Tensor) -> Tensor:
    return torch.lerp(image.min(), image, 0.4)


def _words(answer: int, spatial_dims: int) -> str:
    """`+x -z`: on which side of the centre the answer's tile lies, along each axis."""
    place = answer + (answer >= GRID**spatial_dims // 2)
    steps = [place // GRID ** (spatial_dims - 1 - axis) % GRID - 1 for axis in range(spatial_dims)]
    return " ".join("-+"[step > 0] + AXES[axis] for axis, step in enumerate(steps) if step)
