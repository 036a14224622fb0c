"""Geometry against numpy, scipy and loops."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from selfvox.errors import UsageError
from selfvox.ops import affine, planes, resize, rotations, tiles

SHAPES = [(7, 9), (6, 7, 8)]


def matrix(rotation):
    """The rotation's matrix, from what it does to the positions of voxels."""
    size = 3
    grid = np.stack(np.meshgrid(*[np.arange(size) - 1] * len(rotation.axes), indexing="ij"))
    moved = np.stack([rotation.apply(torch.from_numpy(axis)).numpy() for axis in grid])
    d = len(rotation.axes)
    # the input position seen at each output unit vector
    return np.array([moved[(slice(None), *(np.eye(d, dtype=int)[i] + 1))] for i in range(d)]).T


@pytest.mark.parametrize(("d", "planes", "group"), [(2, 4, 4), (3, 10, 24)])
def test_rotations_are_distinct_and_proper(d, planes, group):
    for table, count in (
        (rotations.plane_rotations(d), planes),
        (rotations.rotation_group(d), group),
    ):
        matrices = [matrix(rotation) for rotation in table]
        assert len({each.tobytes() for each in matrices}) == len(table) == count
        assert [round(np.linalg.det(each)) for each in matrices] == [1] * count
        assert [rotation.determinant for rotation in table] == [1] * count
        assert np.array_equal(matrices[0], np.eye(d))


def test_a_reflection_has_determinant_minus_one():
    assert rotations.AxisRotation((1, 0, 2), (False, False, False)).determinant == -1
    assert rotations.AxisRotation((0, 1, 2), (False, True, False)).determinant == -1


@pytest.mark.parametrize("d", [2, 3])
def test_plane_rotations_are_those_of_numpy_in_order_of_the_angle(d):
    x = np.random.default_rng(0).normal(size=(2, 1, *(4,) * d))
    expected = [x]
    for a, b in itertools.combinations(range(d), 2):
        expected += [np.rot90(x, turns, axes=(2 + a, 2 + b)) for turns in (1, 2, 3)]
    found = [
        rotation.apply(torch.from_numpy(x)).numpy() for rotation in rotations.plane_rotations(d)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("d", [2, 3])
def test_the_inverse_of_every_rotation_undoes_it_exactly_on_unequal_edges(d):
    x = torch.randn(2, 3, *(4, 5, 6)[:d])
    for rotation in rotations.rotation_group(d):
        assert torch.equal(rotation.inverse().apply(rotation.apply(x)), x)


def test_rotate_each_turns_every_sample_by_its_own_rotation():
    x, table = torch.randn(30, 2, 4, 4, 4), rotations.rotation_group(3)
    which = torch.randint(24, (30,))
    for sample, number, found in zip(
        x, which, rotations.rotate_batch(x, table, which), strict=True
    ):
        assert torch.equal(found, table[number].apply(sample))


@pytest.mark.parametrize(("shape", "grid"), [((8, 11), 3), ((6, 7, 9), 2), ((5, 5), 1)])
def test_tiles_are_those_of_a_loop(shape, grid):
    x = torch.randn(2, 3, *shape)
    edges = [size // grid for size in shape]
    first = [(size - edge * grid) // 2 for size, edge in zip(shape, edges, strict=True)]
    found = tiles.split_into_tiles(x, grid)
    for number, cell in enumerate(itertools.product(range(grid), repeat=len(shape))):
        corner = [start + at * edge for start, at, edge in zip(first, cell, edges, strict=True)]
        window = tuple(
            slice(start, start + edge) for start, edge in zip(corner, edges, strict=True)
        )
        assert torch.equal(found[:, number], x[(slice(None), slice(None), *window)])
    assert found.shape[1] == grid ** len(shape)


def random_maps(count, d, rng):
    planes = list(itertools.combinations(range(d), 2))
    angles = torch.empty(count, len(planes)).uniform_(-3, 3, generator=rng)
    matrices = affine.rotation_matrices(angles, planes, d)
    stretch = torch.empty(count, 1, d).uniform_(0.6, 1.3, generator=rng)
    return matrices * stretch, torch.empty(count, d).uniform_(-2, 2, generator=rng)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_resample_equals_scipy_mirrored_edges_included(shape, mode, order):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, *shape, generator=rng)
    matrices, shifts = random_maps(5, len(shape), rng)
    found = affine.resample(x, matrices, shifts, mode)
    centre = (np.array(shape) - 1) / 2
    for sample, m, shift, images in zip(
        x.numpy(), matrices.numpy(), shifts.numpy(), found.numpy(), strict=True
    ):
        for channel, image in zip(sample, images, strict=True):
            offset = centre - m @ centre + shift
            expected = ndimage.affine_transform(channel, m, offset, order=order, mode="reflect")
            wrong = np.abs(image - expected) > 1e-4
            # nearest: a position halfway between two voxels may fall to either
            assert wrong.mean() <= (0.01 if mode == "nearest" else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_resample_by_an_exact_rotation_is_that_rotation(shape):
    d, edge = len(shape), shape[0]
    x = torch.randn(2, 1, *(edge,) * d)
    for rotation in rotations.rotation_group(d):
        m = torch.tensor(matrix(rotation), dtype=torch.float32).expand(2, d, d)
        assert torch.allclose(
            affine.resample(x, m, torch.zeros(2, d)), rotation.apply(x), atol=1e-5
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_precision_does_not_move_voxels(shape):
    def once():
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(3, 1, *shape, generator=rng)
        return affine.resample(x, *random_maps(3, len(shape), rng))

    expected = once()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(once(), expected)


def test_rotation_matrices_compose_in_the_order_given():
    angles, planes = torch.tensor([[0.3, -0.5, 1.1]]), [(0, 1), (0, 2), (1, 2)]
    expected = np.eye(3)
    for (a, b), angle in zip(planes, angles[0].tolist(), strict=True):
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        expected = one @ expected
    assert np.allclose(affine.rotation_matrices(angles, planes, 3)[0], expected, atol=1e-6)


def test_crop_to_reaches_every_offset_and_only_those():
    x = torch.arange(6.0)[None, None, :, None].expand(2, 1, 6, 3)
    rng = torch.Generator().manual_seed(0)
    starts = {tuple(resize.crop_to(x, (4, 3), rng)[0, 0, :, 0].tolist()) for _ in range(50)}
    assert starts == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}


def test_equal_edges_cuts_only_the_axes_that_mix():
    assert planes.equal_edges((40, 56, 48), (0, 1)) == (40, 40, 48)
    assert planes.equal_edges((40, 56, 48), ()) == (40, 56, 48)


def test_planes_of_equal_spacing():
    assert planes.equal_spacing((1.0, 1.02, 3.0)) == [(0, 1)]
    assert planes.equal_spacing((1.0, 1.0)) == [(0, 1)]
    assert planes.equal_spacing((1.0, 2.0, 3.0)) == []


def test_a_plane_is_of_equal_spacing_only_if_it_is_in_every_scan():
    assert planes.equal_spacing((1.0, 1.0, 5.0), (2.0, 2.0, 2.0)) == [(0, 1)]
    assert planes.equal_spacing((0.5, 0.5, 5.0), (4.5, 0.5, 0.5)) == []


def test_planes_are_read_as_they_are_written():
    every = [(0, 1), (0, 2), (1, 2)]
    for chosen in (every, [(0, 2)], every[1:]):
        assert planes.read_planes(planes.plane_names(chosen), 3) == chosen
    assert planes.read_planes("all", 3) == every
    assert planes.read_planes("none", 3) == []


def test_a_plane_named_twice_counts_once():
    assert planes.read_planes("xy, yx,XY", 3) == [(0, 1)]


@pytest.mark.parametrize(("text", "d"), [("xw", 3), ("xz", 2), ("", 3), ("xx", 3)])
def test_what_is_no_plane_is_refused(text, d):
    with pytest.raises(UsageError, match=r"task\.planes"):
        planes.read_planes(text, d)


@pytest.mark.parametrize("d", [2, 3])
def test_images_in_bf16_are_resampled_as_in_fp32(d):
    x = torch.randn(3, 2, *(24,) * d).bfloat16()
    matrices = affine.rotation_matrices(torch.full((3, 1), 0.4), [(0, 1)], d)
    shifts = torch.rand(3, d) * 4
    torch.testing.assert_close(
        affine.resample(x, matrices, shifts),
        affine.resample(x.float(), matrices, shifts).bfloat16(),
    )


@pytest.mark.parametrize("d", [2, 3])
def test_view_maps_say_where_each_position_is_looked_up(d):
    rng = torch.Generator().manual_seed(0)
    shape, planes = (8, 12, 10)[:d], list(itertools.combinations(range(d), 2))
    angles = torch.randn(5, len(planes), generator=rng)
    flips, place = torch.rand(5, d, generator=rng) < 0.5, 2 * torch.rand(5, d, generator=rng) - 1
    scale = torch.tensor([[0.5], [0.8], [1.0], [1.2], [2.0]])
    matrices, shifts = affine.view_maps(shape, angles, planes, flips, scale, place)
    turns = affine.rotation_matrices(angles, planes, d)
    for i in range(5):
        for axis in range(d):
            unit = torch.eye(d)[axis] * scale[i] * (-1 if flips[i, axis] else 1)
            assert torch.allclose(matrices[i] @ torch.eye(d)[axis], turns[i] @ unit, atol=1e-6)
        room = [max(0.0, 1 - float(scale[i])) * edge / 2 for edge in shape]
        assert shifts[i].tolist() == pytest.approx(
            [a * b for a, b in zip(place[i].tolist(), room, strict=True)]
        )


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
def test_tiles_lie_inside_the_image_and_never_touch(shape, per_axis, jitter):
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
    grid, rng = tiles.tile_grid(shape, per_axis, jitter), torch.Generator().manual_seed(1)
    found = tiles.draw_corners(grid, shape, 5, torch.Generator().manual_seed(1))
    for axis, size in enumerate(shape):
        cell, tile, gap = grid.cell[axis], grid.tile[axis], grid.gap[axis]
        offsets = torch.randint(size - per_axis * cell + gap + 1, (5,), generator=rng)
        moved = torch.randint(cell - gap - tile + 1, (5, per_axis ** len(shape)), generator=rng)
        for image in range(5):
            for number, place in enumerate(itertools.product(range(per_axis), repeat=len(shape))):
                expected = offsets[image] + place[axis] * cell + moved[image, number]
                assert found[image, number, axis] == expected


def test_every_image_has_its_own_offset_and_every_tile_its_own_jitter():
    shape, rng = (70, 58), torch.Generator().manual_seed(0)
    grid = tiles.tile_grid(shape, 3, 0.125)
    corners = tiles.draw_corners(grid, shape, 2000, rng)
    # the first tile comes as near to the first voxel, the last as near to the last, as it can
    assert corners[:, 0].amin(0).tolist() == [0, 0]
    assert (corners[:, -1].amax(0) + torch.tensor(grid.tile)).tolist() == list(shape)
    steps = corners[:, 1:] - corners[:, :-1]
    assert len(steps.flatten(1).unique(dim=0)) > 1900


@pytest.mark.parametrize("shape", [(20, 31), (18, 20, 25)])
def test_cut_takes_from_every_image_what_a_loop_takes(shape):
    d, rng = len(shape), torch.Generator().manual_seed(0)
    x, edges = torch.randn(3, 2, *shape), (8, 5, 16)[:d]
    corners = torch.stack(
        [
            torch.randint(n - e + 1, (3, 4), generator=rng)
            for n, e in zip(shape, edges, strict=True)
        ],
        2,
    )
    found = tiles.gather_tiles(x, corners, edges)
    assert found.shape == (3, 4, 2, *edges)
    for image, places, image_tiles in zip(x, corners.tolist(), found, strict=True):
        for place, tile in zip(places, image_tiles, strict=True):
            window = tuple(
                slice(first, first + edge) for first, edge in zip(place, edges, strict=True)
            )
            assert torch.equal(tile, image[(slice(None), *window)])


def test_paste_undoes_cut():
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
def test_the_shape_for_tiles_is_the_least_that_gives_some(per_axis, jitter):
    (edge,) = tiles.shape_for_tiles((1,), per_axis, jitter)
    assert tiles.tile_grid((edge,), per_axis, jitter).tile == (8,)
    assert tiles.tile_grid((edge - 8,), per_axis, jitter).tile == (0,)
    assert tiles.shape_for_tiles((edge + 3, 8), per_axis, jitter) == (edge + 3, edge)


@pytest.mark.parametrize(
    ("shape", "size"), [((4, 7), (8, 20)), ((4, 5, 3), (16, 5, 7)), ((2, 2, 2), (2, 3, 2))]
)
def test_maps_are_enlarged_as_by_interpolate(shape, size):
    x = torch.randn(2, 3, *shape, requires_grad=True)
    found = resize.enlarge(x, size)
    expected = F.interpolate(x, size, mode="trilinear" if len(size) == 3 else "bilinear")
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda x: resize.enlarge(x, size), x.detach().double()[:1].requires_grad_()
    )
    given = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, x, given)[0] for each in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_maps_are_enlarged_in_fp32_under_autocast_and_keep_their_type():
    x = torch.randn(2, 3, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize.enlarge(x, (8, 20))
    assert torch.equal(found, resize.enlarge(x, (8, 20)))
    halved = resize.enlarge(x.bfloat16(), (8, 20))
    assert torch.equal(halved, resize.enlarge(x.bfloat16().float(), (8, 20)).bfloat16())


def test_a_plane_that_is_none_is_refused_as_it_was_written():
    assert planes.read_planes("yx, XZ,xy", 3) == [(0, 1), (0, 2)]
    with pytest.raises(UsageError, match="'inplane' is no plane of a 3D image"):
        planes.read_planes("xy, inplane", 3)
