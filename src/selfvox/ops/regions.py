"""Regions: sets of classes that may overlap, such as a whole tumour and its core.

`WT=1,2,4;TC=1,4;ET=4` is the form in which they are declared. The way back is nnU-Net's: the
regions' values are written over each other in the order of the regions (Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    regions: dict[str, tuple[int, ...]] = {}
    for declaration in filter(str.strip, text.split(";")):
        name, values = _parse_region(declaration)
        if name in regions:
            raise UsageError(f"regions: {name} is declared twice; give each its own name")
        if 0 in values:
            raise UsageError(f"regions: {name} contains the background, 0; leave it out")
        regions[name] = values
    if not regions:
        raise UsageError(f"regions: none is declared; write them as in '{REGIONS_EXAMPLE}'")
    return regions


def _parse_region(declaration: str) -> tuple[str, tuple[int, ...]]:
    """`WT=1,2` -> its name and values, sorted and each once."""
    name, equals, values_text = declaration.partition("=")
    name = name.strip()
    values = [value.strip() for value in values_text.split(",")]
    # five digits: labels have at most 16 bits
    numeric = all(value.isascii() and value.isdecimal() and len(value) < 6 for value in values)
    if not name or not equals or not numeric or not name.isprintable():
        raise UsageError(
            f"regions: '{declaration.strip()}' is not NAME=VALUE,VALUE; write them as in "
            f"'{REGIONS_EXAMPLE}'"
        )
    return name, tuple(sorted({int(value) for value in values}))


def check_regions(regions: Regions, classes: Collection[int]) -> None:
    """Refuse regions of classes that the labels do not have.

    Raises:
        UsageError: names the first such class.
    """
    for name, values in regions.items():
        if foreign := sorted(set(values) - set(classes)):
            existing = ", ".join(map(str, sorted(classes)))
            raise UsageError(
                f"regions: {name} has the class {foreign[0]}, but the labels have {existing}; "
                "correct the regions"
            )


def check_region_names(regions: Regions, names: Mapping[int, str]) -> None:
    """Refuse a region that is called like a class and is not this class alone.

    Tables have one column for both.

    Args:
        regions: by name.
        names: of the classes, by number.

    Raises:
        UsageError: names the first such region.
    """
    for value, name in names.items():
        if regions.get(name, (value,)) != (value,):
            raise UsageError(
                f"regions: {name} is the name of class {value} too, and another set of voxels; "
                f"rename the region, such as 'whole {name}'"
            )


def region_labels(regions: Regions, classes: Collection[int]) -> list[int]:
    """For each region the one class that it has and no later region: the label to write for it.

    Raises:
        UsageError: a region has no such class or several, or a class is in no region: no label
            could be made of them.
    """
    remedy = (
        "declare them from the largest to the smallest, each with one class that no later one has"
    )
    labels = []
    later: set[int] = set()
    unique_to = {}
    # backwards: what is written last is on top
    for name, values in reversed(list(regions.items())):
        unique_to[name] = sorted(set(values) - later)
        later.update(values)
    for name in regions:
        unique = unique_to[name]
        if len(unique) != 1:
            listed = f"several classes ({', '.join(map(str, unique))})" if unique else "no class"
            raise UsageError(
                f"regions: {name} has {listed} besides those of later regions; {remedy}"
            )
        labels += unique
    if outside := sorted(set(classes) - {0} - set(labels)):
        raise UsageError(f"regions: class {outside[0]} is in none of them; add a region for it")
    if foreign := sorted(set(labels) - set(classes)):
        raise UsageError(f"regions: the labels have no class {foreign[0]}; correct the regions")
    return labels


def nested_regions(regions: Regions, labels: Sequence[int]) -> list[list[int]]:
    """For each region, the numbers of the regions with a label inside it, itself among them.

    Args:
        regions: in the order of `labels`.
        labels: of each region, from `region_labels`.
    """
    return [
        [number for number, label in enumerate(labels) if label in values]
        for values in regions.values()
    ]


def membership_matrix(regions: Regions, highest: int) -> np.ndarray:
    """Bool (region, value): does label value 0 to `highest` belong to the region?

    `matrix[:, label]` gives the masks.
    """
    matrix = np.zeros((len(regions), highest + 1), dtype=bool)
    for row, values in zip(matrix, regions.values(), strict=True):
        row[[value for value in values if value <= highest]] = True
    return matrix


def region_class_indices(regions: Regions | None, classes: Collection[int]) -> dict[str, list[int]]:
    """Positions of each region's classes among the sorted class values."""
    position = {value: number for number, value in enumerate(sorted(classes))}
    return {
        name: [position[value] for value in values if value in position]
        for name, values in (regions or {}).items()
    }


def decode_regions(probabilities: Iterable[Any], labels: Sequence[int]) -> np.ndarray:
    """Label (*space), uint16, from the regions' probabilities (*space), one after the other.

    A region is present above a half; later regions overwrite earlier ones.
    """
    decoded: np.ndarray | None = None
    for probability, label in zip(probabilities, labels, strict=True):
        present = np.asarray(probability) > 0.5
        if decoded is None:
            # labels have at most 16 bits
            decoded = np.zeros(present.shape, dtype=np.uint16)
        decoded[present] = label
    assert decoded is not None, "a network has at least one region"
    return decoded


def regions_to_json(regions: Regions | None) -> dict[str, list[int]] | None:
    """Regions as lists, for JSON."""
    return None if regions is None else {name: list(values) for name, values in regions.items()}


def regions_from_json(written: Any) -> dict[str, tuple[int, ...]] | None:
    """The inverse of `regions_to_json`.

    Raises:
        ValueError: `written` is anything else.
    """
    if written is None:
        return None
    if not isinstance(written, dict) or not written:
        raise ValueError("regions")
    for values in written.values():
        if not isinstance(values, list) or not values or not all(map(_is_label, values)):
            raise ValueError("regions")
    return {str(name): tuple(values) for name, values in written.items()}


def _is_label(value: Any) -> bool:
    # not isinstance: True is an int
    return type(value) is int and 0 < value < 2**16
