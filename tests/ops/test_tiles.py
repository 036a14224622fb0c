"""Tiles against loops."""

import itertools

import numpy as np
import pytest
import torch

from selfvox.ops import tiles


@pytest.mark.parametrize(("shape", "grid"), [((8, 11), 3), ((6, 7, 9), 2), ((5, 5), 1)])
def test_an_image_is_split_as_by_a_loop(shape, grid):
    x = torch.randn(2, 3, *shape)
    edges = [size // grid for size in shape]
    first = [(size - edge * grid) // 2 for size, edge in zip(shape, edges, strict=True)]
    actual = tiles.split_into_tiles(x, grid)
    for number, cell in enumerate(itertools.product(range(grid), repeat=len(shape))):
        corner = [start + at * edge for start, at, edge in zip(first, cell, edges, strict=True)]
        window = tuple(
            slice(start, start + edge) for start, edge in zip(corner, edges, strict=True)
        )
        assert torch.equal(actual[:, number], x[(slice(None), slice(None), *window)])
    assert actual.shape[1] == grid ** len(shape)


GRIDS = [((32, 48), 3, 0.125), ((40, 57, 33), 3, 0.125), ((70, 31), 2, 0.3), ((64, 64, 65), 4, 0.0)]


@pytest.mark.parametrize(("shape", "per_axis", "jitter"), GRIDS)
def test_tiles_are_the_largest_that_leave_their_share_free(shape, per_axis, jitter):
    grid = tiles.tile_grid(shape, per_axis, jitter)
    for size, cell, tile, gap in zip(shape, *grid[1:], strict=True):
        fitting = [
            edge for edge in range(0, cell, 8) if cell - edge >= 2 and cell - edge >= jitter * cell
        ]
        assert (cell, tile, gap) == (size // per_axis, fitting[-1], (cell - fitting[-1]) // 2)
        assert gap >= 1


@pytest.mark.parametrize(("shape", "per_axis", "jitter"), GRIDS)
def test_tiles_are_inside_the_image_and_never_touch(shape, per_axis, jitter):
    grid = tiles.tile_grid(shape, per_axis, jitter)
    corners = tiles.draw_corners(grid, shape, 100, torch.Generator().manual_seed(0)).numpy()
    tile = np.array(grid.tile)
    assert (corners >= 0).all()
    assert (corners + tile <= shape).all()
    for a, b in itertools.combinations(range(corners.shape[1]), 2):
        # along some axis, at least the gap lies between the two
        between = np.abs(corners[:, a] - corners[:, b]) - tile
        assert (between >= grid.gap).any(1).all()


@pytest.mark.parametrize(("shape", "per_axis", "jitter"), GRIDS)
def test_corners_are_those_of_a_loop(shape, per_axis, jitter):
    grid = tiles.tile_grid(shape, per_axis, jitter)
    rng = torch.Generator().manual_seed(1)
    actual = tiles.draw_corners(grid, shape, 5, torch.Generator().manual_seed(1))
    for axis, size in enumerate(shape):
        cell = grid.cell[axis]
        tile = grid.tile[axis]
        gap = grid.gap[axis]
        offsets = torch.randint(size - per_axis * cell + gap + 1, (5,), generator=rng)
        moved = torch.randint(cell - gap - tile + 1, (5, per_axis ** len(shape)), generator=rng)
        for image in range(5):
            for number, place in enumerate(itertools.product(range(per_axis), repeat=len(shape))):
                expected = offsets[image] + place[axis] * cell + moved[image, number]
                assert actual[image, number, axis] == expected


def test_every_image_has_its_own_offset_and_every_tile_its_own_jitter():
    shape = (70, 58)
    rng = torch.Generator().manual_seed(0)
    grid = tiles.tile_grid(shape, 3, 0.125)
    corners = tiles.draw_corners(grid, shape, 2000, rng)
    # the first tile comes as near to the first voxel, the last as near to the last, as it can
    assert corners[:, 0].amin(0).tolist() == [0, 0]
    assert (corners[:, -1].amax(0) + torch.tensor(grid.tile)).tolist() == list(shape)
    steps = corners[:, 1:] - corners[:, :-1]
    assert len(steps.flatten(1).unique(dim=0)) > 1900


@pytest.mark.parametrize("shape", [(20, 31), (18, 20, 25)])
def test_tiles_are_gathered_as_by_a_loop(shape):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *shape)
    edges = (8, 5, 16)[: len(shape)]
    corners = torch.stack(
        [
            torch.randint(n - e + 1, (3, 4), generator=rng)
            for n, e in zip(shape, edges, strict=True)
        ],
        2,
    )
    actual = tiles.gather_tiles(x, corners, edges)
    assert actual.shape == (3, 4, 2, *edges)
    for image, places, image_tiles in zip(x, corners.tolist(), actual, strict=True):
        for place, tile in zip(places, image_tiles, strict=True):
            window = tuple(
                slice(first, first + edge) for first, edge in zip(place, edges, strict=True)
            )
            assert torch.equal(tile, image[(slice(None), *window)])


def test_pasting_undoes_gathering():
    x = torch.randn(1, 2, 40, 48)
    grid = tiles.tile_grid((40, 48), 3, 0.125)
    corners = tiles.draw_corners(grid, (40, 48), 1, torch.Generator().manual_seed(0))
    shown = tiles.gather_tiles(x, corners, grid.tile)
    pasted = tiles.paste_tiles(torch.zeros(2, 40, 48), shown[0], corners[0])
    assert torch.equal(tiles.gather_tiles(pasted[None], corners, grid.tile), shown)
    assert (
        int((pasted != 0).sum()) == shown.numel()
    )  # tiles do not overlap, and nothing else was touched


@pytest.mark.parametrize(("per_axis", "jitter"), [(2, 0.125), (3, 0.125), (3, 0.5), (5, 0.0)])
def test_the_shape_for_tiles_is_the_smallest_that_gives_some(per_axis, jitter):
    (edge,) = tiles.shape_for_tiles((1,), per_axis, jitter)
    assert tiles.tile_grid((edge,), per_axis, jitter).tile == (8,)
    assert tiles.tile_grid((edge - 8,), per_axis, jitter).tile == (0,)
    assert tiles.shape_for_tiles((edge + 3, 8), per_axis, jitter) == (edge + 3, edge)
