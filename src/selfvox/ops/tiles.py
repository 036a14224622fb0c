"""Tiles of image batches: grid, corners, gather and paste."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def split_into_tiles(x: Tensor, grid: int) -> Tensor:
    """Cut images into `grid**d` equal tiles that do not overlap; a remainder is left out evenly at both ends.

    Args:
        x: (batch, channel, *space).
        grid: tiles along each axis.

    Returns:
        (batch, grid**d, channel, *tile), the last axis counting fastest.
    """
    d = x.ndim - 2
    edges = [size // grid for size in x.shape[2:]]
    for axis, (size, edge) in enumerate(zip(x.shape[2:], edges, strict=True)):
        x = x.narrow(2 + axis, (size - edge * grid) // 2, edge * grid)
    split = x.reshape(*x.shape[:2], *(number for edge in edges for number in (grid, edge)))
    order = [0, *(2 + 2 * i for i in range(d)), 1, *(3 + 2 * i for i in range(d))]
    return split.permute(order).reshape(x.shape[0], grid**d, x.shape[1], *edges)


class TileGrid(NamedTuple):
    """Equal tiles, each free to move within its cell; lengths in voxels, one for each axis.

    A tile leaves at least `gap` voxels of its cell free at the end, so neighbours never touch.
    """

    per_axis: int
    cell: tuple[int, ...]
    tile: tuple[int, ...]
    gap: tuple[int, ...]


SMALLEST_TILE = 8  # an encoder of two levels makes a map of 4 voxels of it


def tile_grid(shape: Sequence[int], per_axis: int, jitter: float) -> TileGrid:
    """The largest tiles that fit: multiples of 8 (0: none does), with a share of `jitter` of each cell, or more, free.

    Half of what is free is kept as the gap, the other half is for the tile to move in; 2 voxels at least.
    """
    cell = tuple(size // per_axis for size in shape)
    tile = tuple(
        max(0, edge - max(2, math.ceil(jitter * edge))) // SMALLEST_TILE * SMALLEST_TILE
        for edge in cell
    )
    gap = tuple((edge - inner) // 2 for edge, inner in zip(cell, tile, strict=True))
    return TileGrid(per_axis, cell, tile, gap)


def shape_for_tiles(shape: Sequence[int], per_axis: int, jitter: float) -> tuple[int, ...]:
    """`shape`, each edge too short for a grid of tiles lengthened to the least multiple of 8 that is not."""
    long_enough = next(
        edge for edge in itertools.count(8, 8) if tile_grid([edge], per_axis, jitter).tile[0]
    )
    return tuple(
        size if tile_grid([size], per_axis, jitter).tile[0] else long_enough for size in shape
    )


def draw_corners(grid: TileGrid, shape: Sequence[int], batch: int, rng: torch.Generator) -> Tensor:
    """Where the first voxels of the tiles lie: the grid at a random offset in each image, each tile at one in its cell.

    Returns:
        (batch, per_axis**d, d) on the CPU, the tiles with the last axis counting fastest.
    """
    places = grid.per_axis ** len(shape)
    cells = torch.cartesian_prod(*[torch.arange(grid.per_axis)] * len(shape))
    along = []
    for axis, (size, cell, tile, gap) in enumerate(zip(shape, *grid[1:], strict=True)):
        offset = torch.randint(size - (grid.per_axis * cell - gap) + 1, (batch, 1), generator=rng)
        moved = torch.randint(cell - gap - tile + 1, (batch, places), generator=rng)
        along.append(offset + cells[:, axis] * cell + moved)
    return torch.stack(along, 2)


def gather_tiles(x: Tensor, corners: Tensor, edges: Sequence[int]) -> Tensor:
    """Cut tiles out of every image, each image at places of its own; all in one gather.

    Args:
        x: (batch, channel, *space).
        corners: (batch, tile, d), the tiles' first voxels.
        edges: of a tile.

    Returns:
        (batch, tile, channel, *edges).
    """
    windows = x  # every place that a tile could have: a view, nothing is copied
    for axis, edge in enumerate(edges):
        windows = windows.unfold(2 + axis, edge, 1)
    sample = torch.arange(len(x), device=x.device)[:, None]
    place: tuple[Tensor | slice, ...] = (sample, slice(None), *corners.to(x.device).unbind(2))
    return windows[place]


def paste_tiles(onto: Tensor, tiles: Tensor, corners: Tensor) -> Tensor:
    """A copy of one image with tiles (tile, channel, *edges) put at their corners (tile, d); for pictures."""
    image = onto.clone()
    for tile, corner in zip(tiles, corners.tolist(), strict=True):
        image[
            (slice(None), *(slice(a, a + n) for a, n in zip(corner, tile.shape[1:], strict=True)))
        ] = tile
    return image
