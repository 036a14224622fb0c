"""Regions: sets of classes that may overlap, such as a whole tumour and its core; labels as their masks, and back.

`WT=1,2,4;TC=1,4;ET=4` is the form in which they are declared. The way back is nnU-Net's: the regions' values are
written over each other in the order of the regions (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from selfvox.errors import UsageError

Regions = Mapping[str, tuple[int, ...]]  # name -> the label values that belong to it

REGIONS_EXAMPLE = "WT=1,2,4;TC=1,4;ET=4"


def parse_regions(text: str) -> dict[str, tuple[int, ...]]:
    """Regions from `NAME=VALUE,VALUE;NAME=VALUE`.

    Raises:
        UsageError: it has another form, a name twice, or the background in a region.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, listed = part.partition("=")
        name, values = name.strip(), [value.strip() for value in listed.split(",")]
        numbers = all(value.isascii() and value.isdecimal() and len(value) < 6 for value in values)
        if not name or not equals or not numbers or not name.isprintable():
            raise UsageError(
                f"regions: '{part.strip()}' is not NAME=VALUE,VALUE; write them as in '{REGIONS_EXAMPLE}'"
            )
        if name in found:
            raise UsageError(f"regions: {name} is declared twice; give each its own name")
        found[name] = tuple(sorted({int(value) for value in values}))
        if 0 in found[name]:
            raise UsageError(f"regions: {name} holds the background, 0; leave it out")
    if not found:
        raise UsageError(f"regions: none is declared; write them as in '{REGIONS_EXAMPLE}'")
    return found


def check_regions(regions: Regions, classes: Collection[int]) -> None:
    """Refuse regions of classes that the labels do not have.

    Raises:
        UsageError: names the first such class.
    """
    for name, values in regions.items():
        if foreign := sorted(set(values) - set(classes)):
            there = ", ".join(map(str, sorted(classes)))
            raise UsageError(
                f"regions: {name} has the class {foreign[0]}, which the labels have not ({there}); correct the regions"
            )


def region_labels(regions: Regions, classes: Collection[int]) -> list[int]:
    """For each region the one class that it has and no later region: what is written where the region was found.

    Raises:
        UsageError: a region has no such class or several, or a class is in no region: no label could be made of them.
    """
    remedy = (
        "declare them from the largest to the smallest, each with one class that no later one has"
    )
    own = []
    names = list(regions)
    for place, name in enumerate(names):
        later = {value for other in names[place + 1 :] for value in regions[other]}
        left = sorted(set(regions[name]) - later)
        if len(left) != 1:
            what = f"several classes ({', '.join(map(str, left))})" if left else "no class"
            raise UsageError(f"regions: {name} has {what} beside those of later regions; {remedy}")
        own += left
    if outside := sorted(set(classes) - {0} - set(own)):
        raise UsageError(f"regions: class {outside[0]} is in none of them; add a region for it")
    if foreign := sorted(set(own) - set(classes)):
        raise UsageError(f"regions: the labels have no class {foreign[0]}; correct the regions")
    return own


def nested_regions(regions: Regions, own: Sequence[int]) -> list[list[int]]:
    """For each region, the numbers of the regions whose own class it holds, itself among them; see `own_values`."""
    return [
        [number for number, value in enumerate(own) if value in values]
        for values in regions.values()
    ]


def membership_matrix(regions: Regions, highest: int) -> np.ndarray:
    """Bool (region, value): whether label value 0 to `highest` belongs to it; `table[:, label]` gives the masks."""
    table = np.zeros((len(regions), highest + 1), dtype=bool)
    for row, values in zip(table, regions.values(), strict=True):
        row[[value for value in values if value <= highest]] = True
    return table


def region_class_indices(regions: Regions | None, classes: Collection[int]) -> dict[str, list[int]]:
    """Where the classes of each region stand among the sorted class values."""
    place = {value: number for number, value in enumerate(sorted(classes))}
    return {
        name: [place[value] for value in values if value in place]
        for name, values in (regions or {}).items()
    }


def decode_regions(found: Any, own: Sequence[int]) -> np.ndarray:
    """Class numbers (*space), uint16, of the regions' probabilities (region, *space): above a half, later ones win."""
    label = np.zeros(found.shape[1:], dtype=np.uint16)
    for probability, value in zip(np.asarray(found), own, strict=True):
        label[probability > 0.5] = value
    return label


def regions_to_json(regions: Regions | None) -> dict[str, list[int]] | None:
    """As JSON holds them."""
    return None if regions is None else {name: list(values) for name, values in regions.items()}


def regions_from_json(written: Any) -> dict[str, tuple[int, ...]] | None:
    """The inverse of `to_json`.

    Raises:
        ValueError: it is none.
    """
    if written is None:
        return None
    if not isinstance(written, dict) or not written:
        raise ValueError("regions")
    for values in written.values():
        if (
            not isinstance(values, list)
            or not values
            or not all(type(v) is int and 0 < v < 2**16 for v in values)
        ):
            raise ValueError("regions")
    return {str(name): tuple(values) for name, values in written.items()}
