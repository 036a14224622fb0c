"""Planes of an image, and which of them have equal spacing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from selfvox.errors import UsageError

AXES = "xyz"  # the spatial axes in settings; of a picture, x counts rows

Plane = tuple[int, int]


def equal_edges(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` with the given axes shortened to the shortest of them: rotations may mix them."""
    edge = min((shape[axis] for axis in axes), default=0)
    return tuple(edge if axis in axes else size for axis, size in enumerate(shape))


def equal_spacing(*spacings_mm: Sequence[float], tolerance: float = 0.05) -> list[Plane]:
    """The planes (pairs of axes) of equal spacing, within a share of `tolerance`, in every scan."""
    pairs = itertools.combinations(range(len(spacings_mm[0])), 2)
    return [
        (a, b)
        for a, b in pairs
        # relative: 5 % of a fine spacing is as visible as 5 % of a coarse one
        if all(math.isclose(spacing[a], spacing[b], rel_tol=tolerance) for spacing in spacings_mm)
    ]


def plane_names(planes: Sequence[Plane]) -> str:
    """Planes as a setting writes them: `xy,xz`."""
    return ",".join(AXES[a] + AXES[b] for a, b in planes)


def read_planes(text: str, spatial_dims: int) -> list[Plane]:
    """The planes that a setting names: `all`, `none`, or pairs of axes such as `xy,xz`.

    Raises:
        UsageError: a name is not a plane of such an image.
    """
    all_planes = list(itertools.combinations(range(spatial_dims), 2))
    if text == "all":
        return all_planes
    if text == "none":
        return []
    plane_of = {plane_names([plane]): plane for plane in all_planes}
    planes = []
    for name in text.split(","):
        plane = plane_of.get("".join(sorted(name.strip().lower())))
        if plane is None:
            raise UsageError(
                f"task.planes: '{name.strip()}' is not a plane of a {spatial_dims}D image; "
                f"known: all, {', '.join(plane_of)}"
            )
        planes.append(plane)
    return list(dict.fromkeys(planes))  # each once
