"""Crop sizes and spacings, planned from the prepared cases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from selfvox.data.preparation.store import StoredCase
from selfvox.errors import UsageError

SLICE_AXES = {
    "sagittal": 0,
    "coronal": 1,
    "axial": 2,
}  # x, y, z of a prepared volume: the one that slices lie along


def slice_axis(slices: str | None, cases: Sequence[StoredCase]) -> int | None:
    """The axis of the prepared volumes that slices of this name lie along; None: no slices, the volumes themselves.

    Raises:
        UsageError: the scans are pictures.
    """
    if slices is None:
        return None
    if len(cases[0].shape) != 3:
        raise UsageError("slices: the scans are pictures, which have no slices; leave --slices out")
    return SLICE_AXES[slices]


def volume_edges(size: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """Edges, in the volume, of crops of this size: those of slices along an axis are one voxel thick."""
    return tuple(size) if axis is None else (*size[:axis], 1, *size[axis:])


def in_plane_cases(cases: Sequence[StoredCase], axis: int | None) -> list[StoredCase]:
    """Cases with the shape, spacing and step of their slices, to plan by; as they are without an axis."""
    if axis is None:
        return list(cases)
    return [
        dataclasses.replace(
            case,
            shape=(*case.shape[:axis], *case.shape[axis + 1 :]),
            spacing_mm=(*case.spacing_mm[:axis], *case.spacing_mm[axis + 1 :]),
            geometry=dataclasses.replace(
                case.geometry, step=(*case.geometry.step[:axis], *case.geometry.step[axis + 1 :])
            ),
        )
        for case in cases
    ]


def choose_crop(
    asked: Sequence[int] | None,
    cases: Sequence[StoredCase],
    divisor: Sequence[int] | None = None,
    *,
    inside: bool = False,
) -> tuple[int, ...]:
    """Crop edges: those asked for, or what suits the cases, at most 64 (volumes) or 256 (pictures).

    Args:
        asked: one edge for all axes, or one for each.
        cases: what is cropped.
        divisor: the encoder halves its maps so often; each edge must be a multiple. 8 by default.
        inside: by default the crop holds the median scan whole; with `inside` it lies within nine scans of ten, so
            that hardly any mirrored edge is seen, which could give a pretext task's answer away.

    Raises:
        UsageError: edges that do not fit the scans' dimensions or the divisor.
    """
    d = len(cases[0].shape)
    divisor = tuple(divisor or (8,) * d)
    if asked is None:
        longest = 64 if d == 3 else 256
        shape = np.quantile([case.shape for case in cases], 0.1 if inside else 0.5, axis=0)
        multiples = np.floor(shape / divisor) if inside else np.ceil(shape / divisor)
        fitting = np.clip(multiples * divisor, divisor, [longest // by * by for by in divisor])
        found = [int(edge) for edge in fitting]
        # nine of ten along each axis may be fewer along all; shorten that which takes most scans in, at once or in time
        while inside and not fits_most_scans(found, cases) and fits_most_scans(divisor, cases):
            far = {
                axis: [by if n == axis else each for n, each in enumerate(found)]
                for axis, by in enumerate(divisor)
                if found[axis] > by
            }
            near = {
                axis: [*found[:axis], found[axis] - divisor[axis], *found[axis + 1 :]]
                for axis in far
            }
            found = near[
                max(
                    far,
                    key=lambda axis: (
                        count_containing(near[axis], cases),
                        count_containing(far[axis], cases),
                    ),
                )
            ]
        return tuple(found)
    edges = tuple(asked) * d if len(asked) == 1 else tuple(asked)
    if len(edges) != d:
        raise UsageError(
            f"crop: names {len(edges)} edges and the scans have {d} axes; give one for each, or one for all"
        )
    for edge, by in zip(edges, divisor, strict=True):
        if edge <= 0 or edge % by:
            nearest = f"{max(1, edge // by) * by} and {(edge // by + 1) * by}"
            raise UsageError(f"crop: {edge} is no multiple of {by}; the nearest are {nearest}")
    largest = max((case.shape for case in cases), key=math.prod)
    if math.prod(edges) > 3**d * max(math.prod(largest), math.prod(divisor)):
        raise UsageError(
            f"crop: {' x '.join(map(str, edges))} voxels are more than {3**d} times the largest scan's "
            f"{' x '.join(map(str, largest))}; use a smaller --crop"
        )
    return edges


def fits_most_scans(crop: Sequence[int], cases: Sequence[StoredCase]) -> bool:
    """Whether nine scans of ten, at least, hold the crop."""
    return count_containing(crop, cases) >= 0.9 * len(cases)


def count_containing(crop: Sequence[int], cases: Sequence[StoredCase]) -> int:
    """How many scans hold the crop."""
    return int((np.array([case.shape for case in cases]) >= crop).all(1).sum())


def median_spacing(cases: Sequence[StoredCase]) -> tuple[float, ...]:
    """The median spacing along each axis, in mm."""
    return tuple(float(each) for each in np.median([case.spacing_mm for case in cases], axis=0))


def distinct_spacings(cases: Sequence[StoredCase]) -> list[tuple[float, ...]]:
    """Every spacing, in mm, that a case has, each once."""
    return list(dict.fromkeys(case.spacing_mm for case in cases))


def distinct_resolutions(cases: Sequence[StoredCase]) -> list[tuple[float, ...]]:
    """Every distance, in mm, between voxels that tell something new: the spacing, or the scan's own if coarser."""
    found = [
        tuple(
            round(mm / min(1.0, step), 4)
            for mm, step in zip(case.spacing_mm, case.geometry.step, strict=True)
        )
        for case in cases
    ]
    return list(dict.fromkeys(found))
