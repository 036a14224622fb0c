"""Tiles of image batches: split, draw, gather and paste."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def split_into_tiles(x: Tensor, grid: int) -> Tensor:
    """Split images into `grid**d` equal tiles; a remainder is left out evenly at both ends.

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
    # (batch, channel, grid, edge, grid, edge, ...) -> (batch, *grid, channel, *edges)
    split = x.reshape(*x.shape[:2], *itertools.chain(*((grid, edge) for edge in edges)))
    grid_axes = range(2, 2 + 2 * d, 2)
    edge_axes = range(3, 3 + 2 * d, 2)
    tiles = split.permute(0, *grid_axes, 1, *edge_axes)
    return tiles.reshape(x.shape[0], grid**d, x.shape[1], *edges)


SMALLEST_TILE = 8  # voxels; an encoder of two levels makes a map of 4 voxels of it
SMALLEST_ROOM = 2  # voxels of a cell that stay free: one as a gap, one to move in


class TileGrid(NamedTuple):
    """Equal tiles, each free to move within its cell; lengths in voxels, one for each axis.

    A tile leaves at least `gap` voxels of its cell free at the end, so neighbours never touch.
    """

    per_axis: int
    cell: tuple[int, ...]
    tile: tuple[int, ...]
    gap: tuple[int, ...]


def tile_grid(shape: Sequence[int], per_axis: int, jitter: float) -> TileGrid:
    """The largest tiles, in multiples of 8, that leave a share `jitter` of each cell free.

    0 if none fits. Half of the free voxels are the gap, the tile moves in the other half; at least
    2 are free.
    """
    cell = tuple(size // per_axis for size in shape)
    tile = []
    for edge in cell:
        room = max(SMALLEST_ROOM, math.ceil(jitter * edge))
        tile.append(max(0, edge - room) // SMALLEST_TILE * SMALLEST_TILE)
    gap = tuple((edge - inner) // 2 for edge, inner in zip(cell, tile, strict=True))
    return TileGrid(per_axis, cell, tuple(tile), gap)


def shape_for_tiles(shape: Sequence[int], per_axis: int, jitter: float) -> tuple[int, ...]:
    """`shape`, with edges too short for a grid of tiles lengthened to a multiple of 8."""

    def has_tiles(edge: int) -> bool:
        return tile_grid([edge], per_axis, jitter).tile[0] > 0

    sufficient = next(edge for edge in itertools.count(8, 8) if has_tiles(edge))
    return tuple(edge if has_tiles(edge) else sufficient for edge in shape)


def draw_corners(grid: TileGrid, shape: Sequence[int], batch: int, rng: torch.Generator) -> Tensor:
    """The first voxel of every tile: a random offset of the grid per image, and of each tile.

    Returns:
        (batch, per_axis**d, d) on the CPU, the tiles with the last axis counting fastest.
    """
    tiles = grid.per_axis ** len(shape)
    cells = torch.cartesian_prod(*[torch.arange(grid.per_axis)] * len(shape))
    corners = []  # per axis
    for axis, size in enumerate(shape):
        cell = grid.cell[axis]
        gap = grid.gap[axis]
        # the last cell needs no gap at its end
        room_of_grid = size - (grid.per_axis * cell - gap)
        room_of_tile = cell - gap - grid.tile[axis]
        offset = torch.randint(room_of_grid + 1, (batch, 1), generator=rng)
        shift = torch.randint(room_of_tile + 1, (batch, tiles), generator=rng)
        corners.append(offset + cells[:, axis] * cell + shift)
    return torch.stack(corners, 2)


def gather_tiles(x: Tensor, corners: Tensor, edges: Sequence[int]) -> Tensor:
    """Cut tiles out of every image, at different corners in each; all in one gather.

    Args:
        x: (batch, channel, *space).
        corners: (batch, tile, d), the tiles' first voxels.
        edges: of a tile.

    Returns:
        (batch, tile, channel, *edges).
    """
    windows = x  # every possible tile: a view, nothing is copied
    for axis, edge in enumerate(edges):
        windows = windows.unfold(2 + axis, edge, 1)
    sample = torch.arange(len(x), device=x.device)[:, None]
    index: tuple[Tensor | slice, ...] = (sample, slice(None), *corners.to(x.device).unbind(2))
    return windows[index]


def paste_tiles(onto: Tensor, tiles: Tensor, corners: Tensor) -> Tensor:
    """A copy of one image with tiles (tile, channel, *edges) at their corners (tile, d)."""
    image = onto.clone()
    for tile, corner in zip(tiles, corners.tolist(), strict=True):
        window = [
            slice(start, start + edge) for start, edge in zip(corner, tile.shape[1:], strict=True)
        ]
        image[(slice(None), *window)] = tile
    return image
