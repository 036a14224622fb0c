"""Geometry of image batches on their device: exact rotations, tiles, affine maps in one resampling, sizes.

Space is always the last `d` axes of `(batch, channel, *space)`; everything works for d = 2 and d = 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.compiled import affine
from selfvox.errors import UsageError

AXES = "xyz"  # the names of the spatial axes in settings; of a picture, x counts rows

Plane = tuple[int, int]


class AxisRotation(NamedTuple):
    """An exact rotation: output axis `i` runs along input axis `axes[i]`, backwards where `flipped[i]`."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def determinant(self) -> int:
        """+1 for a rotation, -1 for a reflection."""
        inversions = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return -1 if (inversions + sum(self.flipped)) % 2 else 1

    def apply(self, x: Tensor) -> Tensor:
        """Rotate the last d axes of `x` by moving voxels, without interpolation."""
        d = len(self.axes)
        lead = range(x.ndim - d)
        moved = x.permute(*lead, *(len(lead) + axis for axis in self.axes))
        return moved.flip([len(lead) + i for i in range(d) if self.flipped[i]])

    def inverse(self) -> AxisRotation:
        """The rotation that undoes this one."""
        back = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return AxisRotation(back, tuple(self.flipped[i] for i in back))


def plane_rotations(spatial_dims: int, planes: Sequence[Plane] | None = None) -> tuple[AxisRotation, ...]:
    """The identity, then 90°, 180° and 270° about each plane: 4 in 2D, 10 in 3D (paper A, section 3.4)."""
    identity = AxisRotation(tuple(range(spatial_dims)), (False,) * spatial_dims)
    found = [identity]
    for a, b in planes if planes is not None else itertools.combinations(range(spatial_dims), 2):
        axes = list(identity.axes)
        axes[a], axes[b] = b, a
        flip_a, flip_b = [list(identity.flipped) for _ in range(2)]
        flip_a[a] = flip_b[b] = True
        both = tuple(i in (a, b) for i in range(spatial_dims))
        found += [
            AxisRotation(tuple(axes), tuple(flip_a)),
            AxisRotation(identity.axes, both),
            AxisRotation(tuple(axes), tuple(flip_b)),
        ]
    return tuple(found)


def rotation_group(spatial_dims: int) -> tuple[AxisRotation, ...]:
    """Every rotation that maps the grid onto itself: 4 in 2D, 24 in 3D; the identity first."""
    every = (
        AxisRotation(axes, flipped)
        for axes in itertools.permutations(range(spatial_dims))
        for flipped in itertools.product((False, True), repeat=spatial_dims)
    )
    return tuple(rotation for rotation in every if rotation.determinant == 1)


def rotate_each(x: Tensor, rotations: Sequence[AxisRotation], which: Tensor) -> Tensor:
    """Rotate sample `i` of `x` by `rotations[which[i]]`; one pass per rotation, not per sample.

    Args:
        x: (batch, channel, *space), with equal edges on every axis that a rotation mixes.
        rotations: the table.
        which: (batch,) integers on the CPU.
    """
    out = torch.empty_like(x)
    for number, rotation in enumerate(rotations):
        samples = (which == number).nonzero().flatten().to(x.device)
        if len(samples):
            out[samples] = rotation.apply(x[samples])
    return out


def tiles(x: Tensor, grid: int) -> Tensor:
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
    tile = tuple(max(0, edge - max(2, math.ceil(jitter * edge))) // SMALLEST_TILE * SMALLEST_TILE for edge in cell)
    gap = tuple((edge - inner) // 2 for edge, inner in zip(cell, tile, strict=True))
    return TileGrid(per_axis, cell, tile, gap)


def shape_for_tiles(shape: Sequence[int], per_axis: int, jitter: float) -> tuple[int, ...]:
    """`shape`, each edge too short for a grid of tiles lengthened to the least multiple of 8 that is not."""
    long_enough = next(edge for edge in itertools.count(8, 8) if tile_grid([edge], per_axis, jitter).tile[0])
    return tuple(size if tile_grid([size], per_axis, jitter).tile[0] else long_enough for size in shape)


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


def cut(x: Tensor, corners: Tensor, edges: Sequence[int]) -> Tensor:
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


def paste(onto: Tensor, tiles: Tensor, corners: Tensor) -> Tensor:
    """A copy of one image with tiles (tile, channel, *edges) put at their corners (tile, d); for pictures."""
    image = onto.clone()
    for tile, corner in zip(tiles, corners.tolist(), strict=True):
        image[(slice(None), *(slice(a, a + n) for a, n in zip(corner, tile.shape[1:], strict=True)))] = tile
    return image


def rotation_matrices(angles: Tensor, planes: Sequence[Plane], spatial_dims: int) -> Tensor:
    """Rotation matrices from angles about planes, composed in the order given.

    Args:
        angles: (batch, plane) in radians.
        planes: pairs of axes, one per column of `angles`.
        spatial_dims: d.

    Returns:
        (batch, d, d), acting on (row, column) or (x, y, z) positions.
    """
    total = torch.eye(spatial_dims).repeat(len(angles), 1, 1)
    for column, (a, b) in enumerate(planes):
        cosine, sine = angles[:, column, None].cos(), angles[:, column, None].sin()
        row_a, row_b = total[:, a].clone(), total[:, b].clone()
        total[:, a] = cosine * row_a - sine * row_b
        total[:, b] = sine * row_a + cosine * row_b
    return total


def view_maps(
    shape: Sequence[int], angles: Tensor, planes: Sequence[Plane], flips: Tensor, scale: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """The affine maps, for `resample`, of views that are turned, flipped, and zoomed into a part of the image.

    Args:
        shape: edges of the images in voxels.
        angles: (batch, plane) in radians.
        planes: the planes to turn in, one per column of `angles`.
        flips: (batch, d) booleans, the axes to flip.
        scale: (batch, 1) edges of what is seen as a share of the image's; above 1, the mirrored surroundings are seen.
        place: (batch, d) in -1 ... 1, where that part lies between the image's two ends.
    """
    matrices = rotation_matrices(angles, planes, len(shape)) * torch.where(flips, -1.0, 1.0)[:, None, :]
    room = (1 - scale).clamp(min=0) * torch.tensor(shape, dtype=torch.float32) / 2
    return matrices * scale[:, :, None], place * room


def resample(x: Tensor, matrices: Tensor, shifts: Tensor, mode: str = "bilinear") -> Tensor:
    """Map images affinely about their centres, in one interpolation; what lies outside is mirrored.

    The output at position `p` (in voxels from the centre) is the input at `matrix @ p + shift`.

    Args:
        x: (batch, channel, *space).
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        mode: "bilinear" (trilinear in 3D) or "nearest" (for labels).
    """
    if x.device.type == "cpu" and mode == "bilinear" and not x.requires_grad:
        return affine(x.float(), matrices, shifts).to(x.dtype)
    return _grid_sample(x, matrices, shifts, mode)


def _grid_sample(x: Tensor, matrices: Tensor, shifts: Tensor, mode: str) -> Tensor:
    """`resample` on any device, by torch."""
    d = x.ndim - 2
    half = torch.tensor(x.shape[2:], dtype=torch.float32) / 2
    # grid_sample wants positions in -1 ... 1, the last axis first
    scaled = matrices * half[None, None, :] / half[None, :, None]
    theta = torch.cat([scaled, (shifts / half)[:, :, None]], 2)
    theta = torch.cat([theta[:, :, :d].flip(1, 2), theta[:, :, d:].flip(1)], 2).to(x.device)
    # in bf16, positions are tenths of a voxel off, and torch 2.13's 2D grid_sample reads outside the image
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        sampled = F.grid_sample(x.float(), grid, mode=mode, padding_mode="reflection", align_corners=False)
    return sampled.to(x.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images of other edges that show the same: axes that shrink are averaged, axes that grow are interpolated.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    fewer = [min(have, want) for have, want in zip(x.shape[2:], size, strict=True)]
    x = F.interpolate(x, size=fewer, mode="area") if fewer != list(x.shape[2:]) else x
    if fewer == list(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear" if len(size) == 2 else "trilinear")


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps brought to a finer grid linearly, as by `F.interpolate`, but by one matrix product for each axis.

    Less work than weighing 4 or 8 corners for each voxel, above all for the gradient, whose sum on a GPU then also has
    a fixed order. One value that is not finite spoils all of its map.

    Args:
        x: (batch, channel, *space).
        size: new edges in voxels.
    """
    fine = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        for axis in reversed(range(2, x.ndim)):
            have, want = x.shape[axis], size[axis - 2]
            if have == want:
                continue
            unit = torch.eye(have, dtype=fine.dtype, device=x.device)
            weights = F.interpolate(unit[None], want, mode="linear")[0]  # (have, want)
            if axis == x.ndim - 1:
                fine = fine @ weights
                continue
            shape = [*fine.shape[:axis], want, *fine.shape[axis + 1 :]]
            rows = fine.reshape(-1, have, math.prod(shape[axis + 1 :]))
            fine = torch.bmm(weights.T.expand(len(rows), -1, -1), rows).view(shape)
    return fine.to(x.dtype)


def equal_edges(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` with the given axes cut to their shortest edge, so that rotations may mix them."""
    edge = min((shape[axis] for axis in axes), default=0)
    return tuple(edge if axis in axes else size for axis, size in enumerate(shape))


def crop_to(x: Tensor, size: Sequence[int], rng: torch.Generator) -> Tensor:
    """A view of the batch at one random offset, `size` voxels large."""
    for axis, (have, want) in enumerate(zip(x.shape[2:], size, strict=True)):
        start = int(torch.randint(have - want + 1, (), generator=rng))
        x = x.narrow(2 + axis, start, want)
    return x


def equal_spacing(*spacings_mm: Sequence[float], tolerance: float = 0.05) -> list[Plane]:
    """The planes (pairs of axes) whose two spacings agree within a share of `tolerance`, in every scan's spacing."""
    return [
        (a, b)
        for a, b in itertools.combinations(range(len(spacings_mm[0])), 2)
        if all(math.isclose(each[a], each[b], rel_tol=tolerance) for each in spacings_mm)
    ]


def plane_names(planes: Sequence[Plane]) -> str:
    """Planes as a setting writes them: `xy,xz`."""
    return ",".join(AXES[a] + AXES[b] for a, b in planes)


def read_planes(text: str, spatial_dims: int) -> list[Plane]:
    """The planes that a setting names: `all`, `none`, or pairs of axes such as `xy,xz`.

    Raises:
        UsageError: a name that is no plane of such an image.
    """
    every = list(itertools.combinations(range(spatial_dims), 2))
    if text == "all":
        return every
    known = {plane_names([plane]): plane for plane in every}
    planes = []
    for name in [] if text == "none" else text.split(","):
        plane = known.get("".join(sorted(name.strip().lower())))
        if plane is None:
            raise UsageError(
                f"task.planes: '{name.strip()}' is no plane of a {spatial_dims}D image; known: all, {', '.join(known)}"
            )
        planes.append(plane)
    return list(dict.fromkeys(planes))
