"""The label of one case: read, and checked against its scan, by `prepare` and by `lint` alike."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfvox.data.formats.image import Image, read_label_with_notes
from selfvox.data.formats.label_values import check_undeclared
from selfvox.data.naming import printable
from selfvox.data.preparation.geometry import Geometry, crop_to_box
from selfvox.errors import DataError

# share of a class's labelled voxels that may be outside the foreground box, where no network looks
MOST_OUTSIDE = 0.01


class CaseLabel(NamedTuple):
    """A label that can be used, and what is doubtful about it."""

    values: np.ndarray  # (*space), uint8 or uint16, on the grid of its scan
    notes: tuple[str, ...]


def read_case_label(
    path: Path, image: Image, geometry: Geometry, classes: Collection[int] | None
) -> CaseLabel:
    """Read the label of a scan.

    Args:
        path: of the label.
        image: the scan, as it was read.
        geometry: of the prepared scan.
        classes: values that a label may have; None: any that a label can be expected to have.

    Raises:
        DataError: it cannot be used, or is most likely that of another scan.
    """
    values, notes = read_label_with_notes(path, image, classes)
    if classes is None:
        notes = (*notes, *check_undeclared(values, printable(f"{path.parent.name}/{path.name}")))
    return CaseLabel(values, (*notes, *_check_box(values, geometry, image.name)))


def _check_box(label: np.ndarray, geometry: Geometry, name: str) -> list[str]:
    """A note if the foreground box does not contain the whole label: the rest is cut off.

    Raises:
        DataError: it is more than stray voxels of a class.
    """
    inside = crop_to_box(label, geometry)
    outside = np.count_nonzero(label) - np.count_nonzero(inside)
    if not outside:
        return []
    values, counts = np.unique(label[label > 0], return_counts=True)
    for value, count in zip(values, counts, strict=True):
        lost = count - np.count_nonzero(inside == value)
        if lost > MOST_OUTSIDE * count:
            raise DataError(
                f"{name}: its label has {lost} of {count} voxels of class {value} in the empty "
                "background, outside the box around the foreground; is it the label of this scan? "
                "Correct it, or leave the scan out"
            )
    return [f"{outside} labelled voxels are cut off: they are outside the foreground box"]
