"""Which axes of the scans `--mirror` names, and which classes forbid it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from selfvox.errors import UsageError
from selfvox.ops.flips import PICTURE, VOLUME
from selfvox.runs.progress import echo

# words for a side, and their opposites, in lower case
OPPOSITE = {"left": "right", "l": "r", "lh": "rh"}
OPPOSITE |= {right: left for left, right in OPPOSITE.items()}


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
    """Refuse to mirror left to right where classes have names for both sides; warn of one side.

    Raises:
        UsageError: two classes have names that differ in their side only.
    """
    if "left-right" not in [names[axis] for axis in axes]:
        return
    one_sided = []
    listed = list(classes)
    by_folded = {name.casefold(): name for name in listed}
    for name in listed:
        opposites = {_opposite_side(name), _replace_anywhere(name)} - {name}
        for opposite in sorted(opposites):
            other = by_folded.get(opposite.casefold())
            if other is not None:
                raise UsageError(
                    f"mirror: a mirrored scan shows '{name}' where '{other}' is; leave left-right "
                    "out of --mirror"
                )
        if _opposite_side(name) != name:
            one_sided.append(name)
    if one_sided:
        echo(
            f"warning: {', '.join(one_sided)}: named after one side, and a mirrored scan shows it "
            "on the other; leave left-right out of --mirror if the side matters"
        )


def _opposite_side(name: str) -> str:
    """The name with each word for a side replaced by that of the other side.

    Words are `left`, `L` and `lh` (left hemisphere) in any case, between signs or capitals: in
    `Left-Hippocampus`, `kidney_l` and `hippocampusLeft`, but not in `LV`, `L5` or `cleft`.
    """
    return re.sub(r"[A-Z]?[a-z]+(?!\d)|[A-Z]+(?![a-z\d])", _swap_side, name)


def _swap_side(word: re.Match[str]) -> str:
    text = word.group()
    return OPPOSITE.get(text.lower(), text)


def _replace_anywhere(name: str) -> str:
    """The name with `left` replaced within words too, such as `leftkidney`."""
    return re.sub("left", "right", name, flags=re.IGNORECASE)
