"""Which axes of the scans `--mirror` names, and which classes forbid it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from selfvox.errors import UsageError
from selfvox.ops.flips import PICTURE, VOLUME


def axis_names(spatial_dims: int, slice_axis: int | None = None) -> tuple[str, ...]:
    """What the axes of an image are called, as `--mirror` calls them.

    Args:
        spatial_dims: of the scans.
        slice_axis: the axis of the volumes that their slices do not have.
    """
    names = VOLUME if spatial_dims == 3 else PICTURE
    return tuple(name for axis, name in enumerate(names) if axis != slice_axis)


def mirror_axes(setting: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """The axes that a setting names: none, all, or some of `names`.

    Raises:
        UsageError: the images have no such axis.
    """
    if "all" in setting:
        return tuple(range(len(names)))
    missing = [name for name in setting if name not in (*names, "none")]
    if missing:
        raise UsageError(
            f"mirror: these images have no axis {missing[0]}; use none, all, or some of "
            f"{', '.join(names)}"
        )
    return tuple(axis for axis, name in enumerate(names) if name in setting)


def check_sides(axes: Sequence[int], names: Sequence[str], classes: Iterable[str]) -> None:
    """Refuse to mirror left to right where classes tell the two sides apart.

    Raises:
        UsageError: two classes have names that differ in left and right only.
    """
    if "left-right" not in [names[axis] for axis in axes]:
        return
    known = list(classes)
    for name in known:
        # one direction is enough: the list has both names
        other = re.sub("left", "right", name, flags=re.IGNORECASE)
        if other != name and other.casefold() in map(str.casefold, known):
            raise UsageError(
                f"mirror: a mirrored scan shows '{name}' where '{other}' is; leave left-right out "
                "of --mirror"
            )
