"""Crop sizes and spacings, planned from the prepared cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from selfvox.data.preparation.case_table import CaseTable, numbers
from selfvox.data.preparation.stored_case import StoredCase, in_plane_case
from selfvox.errors import UsageError

# slices of this name are perpendicular to this axis of a prepared volume: x, y, z
SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
DIVISOR = 8  # of a crop's edges, where the encoder is not built yet
CROP_VOXELS = {2: 256**2, 3: 64**3}  # at most, of a crop that nobody chose, by dimensions
_WHOLE_SCAN_CROPS = 4  # a classifier sees a whole scan at once, and holds fewer maps than a U-Net


def slice_axis(slices: str | None, cases: Sequence[StoredCase]) -> int | None:
    """The axis of the prepared volumes that these slices are perpendicular to.

    Args:
        slices: sagittal, coronal or axial; None: the volumes themselves, without an axis.
        cases: the prepared volumes.

    Raises:
        UsageError: the scans are pictures.
    """
    if slices is None:
        return None
    if len(cases[0].shape) != 3:
        raise UsageError("slices: the scans are pictures, which have no slices; leave --slices out")
    return SLICE_AXES[slices]


def volume_edges(size: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """Edges of a crop in the volume: a crop of slices is one voxel thick along their axis."""
    return tuple(size) if axis is None else (*size[:axis], 1, *size[axis:])


def in_plane_cases(cases: Sequence[StoredCase], axis: int | None) -> Sequence[StoredCase]:
    """Cases with shape, spacing and step of their slices; unchanged without an axis."""
    if axis is None:
        return cases
    if isinstance(cases, CaseTable):
        return cases.in_plane(axis)
    return [in_plane_case(case, axis) for case in cases]


def choose_crop(
    requested: Sequence[int] | None,
    cases: Sequence[StoredCase],
    divisor: Sequence[int] | None = None,
    *,
    inside: bool = False,
) -> tuple[int, ...]:
    """Edges of a crop: the requested ones, or what suits the cases.

    A crop that nobody requested has at most 64 cubed voxels (256 squared in pictures). If the
    cases are larger, its edges are equal in mm as far as the cases reach.

    Args:
        requested: one edge for all axes, or one per axis; None: what suits the cases.
        cases: what is cropped.
        divisor: by axis: each edge must be a multiple, since the encoder halves its maps as often.
            8 by default.
        inside: by default the crop contains the whole median scan; with `inside` it is contained
            in nine scans of ten, so that hardly any mirrored edge is seen, which could reveal a
            pretext task's answer.

    Raises:
        UsageError: edges that do not fit the scans' dimensions or the divisor.
    """
    dims = len(cases[0].shape)
    divisor = tuple(divisor or (DIVISOR,) * dims)
    if requested is not None:
        edges = check_edges(requested, divisor)
        _check_not_too_large(edges, cases, divisor)
        return edges
    crop = _typical_crop(cases, divisor, inside=inside)
    if inside:
        return _shrink_until_it_fits(crop, cases, divisor)
    return crop


def choose_whole_size(cases: Sequence[StoredCase], divisor: Sequence[int]) -> tuple[int, ...]:
    """Edges that whole scans are resized to: those of the median scan, reduced alike if too many.

    Reduced to four times the voxels of a default crop. An encoder that was pre-trained on crops
    sees structures of the size that it knows only if nothing is reduced.

    Args:
        cases: what is resized.
        divisor: by axis: each edge is a multiple.
    """
    # the median: a few unusual scans do not decide
    edges = np.median(numbers(cases, "shape"), axis=0)
    share = _WHOLE_SCAN_CROPS * CROP_VOXELS[len(divisor)] / np.prod(edges)
    reduced = edges * min(1.0, share) ** (1 / len(divisor))
    multiples = np.maximum(1, np.round(reduced / divisor)).astype(int)
    return tuple(int(count * unit) for count, unit in zip(multiples, divisor, strict=True))


def check_edges(requested: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """The edges of a requested crop, one for each axis.

    Args:
        requested: one edge for all axes, or one for each.
        divisor: for each axis, what its edge must be a multiple of.

    Raises:
        UsageError: too few or too many edges, or one that is no such multiple.
    """
    dims = len(divisor)
    edges = tuple(requested) * dims if len(requested) == 1 else tuple(requested)
    if len(edges) != dims:
        raise UsageError(
            f"crop: names {len(edges)} edges and the scans have {dims} axes; give one for each, or "
            "one for all"
        )
    for edge, unit in zip(edges, divisor, strict=True):
        if edge <= 0 or edge % unit:
            below = max(1, edge // unit) * unit
            above = (edge // unit + 1) * unit
            raise UsageError(
                f"crop: {edge} is no multiple of {unit}; the nearest are {below} and {above}"
            )
    return edges


def _check_not_too_large(
    edges: Sequence[int], cases: Sequence[StoredCase], divisor: Sequence[int]
) -> None:
    """Refuse a requested crop that is far larger than every scan.

    Raises:
        UsageError: it is.
    """
    dims = len(edges)
    shapes = numbers(cases, "shape")
    largest = shapes[shapes.prod(axis=1, dtype=np.int64).argmax()].tolist()
    # three times the largest scan along every axis: beyond that, nearly all voxels are mirrored
    if math.prod(edges) > 3**dims * max(math.prod(largest), math.prod(divisor)):
        raise UsageError(
            f"crop: {' x '.join(map(str, edges))} voxels are more than {3**dims} times the largest "
            f"scan's {' x '.join(map(str, largest))}; use a smaller --crop"
        )


def _typical_crop(
    cases: Sequence[StoredCase], divisor: Sequence[int], *, inside: bool
) -> tuple[int, ...]:
    """The median edge along each axis, rounded up; or the edge of nine scans of ten, down.

    Both are cut to `CROP_VOXELS`.
    """
    shapes = numbers(cases, "shape")
    if inside:
        # down: a crop beyond a scan shows its mirror image, which may give answers away
        multiples = np.floor(np.quantile(shapes, 0.1, axis=0) / divisor)
    else:
        multiples = np.ceil(np.quantile(shapes, 0.5, axis=0) / divisor)
    edges = np.maximum(multiples, 1).astype(int) * divisor
    return _cut_to_voxels(edges.tolist(), divisor, median_spacing(cases))


def _cut_to_voxels(
    edges: list[int], divisor: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Shorten the longest edge in mm until the crop has few enough voxels.

    A crop of equally many voxels along all axes would show, of thick slices, a long thin bar.
    """
    while math.prod(edges) > CROP_VOXELS[len(edges)]:
        # an edge that reaches the divisor can get no shorter
        lengths_mm = [
            edge * mm if edge > unit else 0.0
            for edge, unit, mm in zip(edges, divisor, spacing_mm, strict=True)
        ]
        if not any(lengths_mm):
            break
        # of equal edges the first, so that the same scans give the same crop
        axis = lengths_mm.index(max(lengths_mm))
        edges[axis] -= divisor[axis]
    return tuple(edges)


def _shrink_until_it_fits(
    crop: tuple[int, ...], cases: Sequence[StoredCase], divisor: Sequence[int]
) -> tuple[int, ...]:
    """Shorten a crop until nine scans of ten contain it; unchanged if none of any size would fit.

    Nine of ten scans along each axis may be fewer along all axes at once.
    """
    if not fits_most_scans(divisor, cases):
        return crop
    while not fits_most_scans(crop, cases):
        crop = _shorten(crop, cases, divisor)
    return crop


def _shorten(
    crop: tuple[int, ...], cases: Sequence[StoredCase], divisor: Sequence[int]
) -> tuple[int, ...]:
    """The crop, one unit shorter along the axis where that lets most scans contain it.

    Among axes that gain equally many scans now, the one counts that could gain most in the end,
    at its shortest; among these the first.
    """
    best_crop = crop
    best_gain = (-1, -1)
    for axis, unit in enumerate(divisor):
        if crop[axis] <= unit:
            continue
        shorter = _with_edge(crop, axis, crop[axis] - unit)
        shortest = _with_edge(crop, axis, unit)
        gain = (count_containing(shorter, cases), count_containing(shortest, cases))
        if gain > best_gain:
            best_crop = shorter
            best_gain = gain
    return best_crop


def _with_edge(crop: tuple[int, ...], axis: int, edge: int) -> tuple[int, ...]:
    return (*crop[:axis], edge, *crop[axis + 1 :])


def fits_most_scans(crop: Sequence[int], cases: Sequence[StoredCase]) -> bool:
    """Whether at least nine scans of ten contain the crop."""
    return count_containing(crop, cases) >= 0.9 * len(cases)


def count_containing(crop: Sequence[int], cases: Sequence[StoredCase]) -> int:
    """How many scans contain the crop."""
    return int((numbers(cases, "shape") >= crop).all(1).sum())


def median_spacing(cases: Sequence[StoredCase]) -> tuple[float, ...]:
    """The median spacing along each axis, in mm."""
    return tuple(float(mm) for mm in np.median(numbers(cases, "spacing_mm"), axis=0))


def distinct_spacings(cases: Sequence[StoredCase]) -> list[tuple[float, ...]]:
    """Every spacing of the cases, in mm, once."""
    return list(map(tuple, _distinct(numbers(cases, "spacing_mm")).tolist()))


def distinct_resolutions(cases: Sequence[StoredCase]) -> list[tuple[float, ...]]:
    """Every resolution of the cases, in mm, once: the spacing, or that of the scan if coarser."""
    pairs = np.stack([numbers(cases, "spacing_mm"), numbers(cases, "step")], axis=2)
    return list(dict.fromkeys(map(_resolution, _distinct(pairs).tolist())))


def _distinct(values: np.ndarray) -> np.ndarray:
    """The rows (m, ...) that differ, in the order in which they occur."""
    _, first = np.unique(values, axis=0, return_index=True)
    distinct: np.ndarray = values[np.sort(first)]
    return distinct


def _resolution(axes: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """The resolution of a case from spacing and step of its axes."""
    # a step below 1 is interpolation, which adds voxels but no detail; rounded, since headers
    # differ in their last digits
    return tuple(round(mm / min(1.0, step), 4) for mm, step in axes)
