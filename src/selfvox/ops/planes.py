"""Planes of an image, and which of them have equal spacing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from selfvox.errors import UsageError

AXES = "xyz"  # the names of the spatial axes in settings; of a picture, x counts rows

Plane = tuple[int, int]


def equal_edges(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` with the given axes cut to their shortest edge, so that rotations may mix them."""
    edge = min((shape[axis] for axis in axes), default=0)
    return tuple(edge if axis in axes else size for axis, size in enumerate(shape))


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
