"""What every picture shares: class colours, outlines, which slice to show and how, saving."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfvox.runs.atomic_files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_COLOURS = ("#ff9f1c", "#2ec4b6", "#e71d36", "#7b2cbf", "#3a86ff")


def class_colour(value: int) -> str:
    """The colour of a label value from 1 on, the same in all pictures; five colours repeat."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]


def outline(
    axes: Axes,
    mask: np.ndarray,
    classes: Iterable[int],
    *,
    linestyle: str = "solid",
    colour: str | None = None,
) -> None:
    """Outline classes of a mask on a picture.

    Args:
        axes: where the picture is drawn.
        mask: (row, column) label values, on the picture's grid.
        classes: label values to outline; the background, 0, is left out.
        linestyle: as matplotlib names it.
        colour: one for all classes, instead of each class's own.
    """
    for value in classes:
        region = mask == value
        # matplotlib warns of a contour that does not exist
        if value == 0 or not region.any():
            continue
        axes.contour(
            region,
            # halfway between outside and inside
            levels=[0.5],
            colors=[colour or class_colour(value)],
            linestyles=linestyle,
            linewidths=1.2,
        )


def upright(plane: np.ndarray) -> np.ndarray:
    """Turn a slice for display: its second axis (anterior or superior) points up.

    Args:
        plane: (right or anterior, anterior or superior), sliced from a volume in RAS orientation.

    Returns:
        (row, column), row 0 at the top.
    """
    return plane.T[::-1]


def plane_letters(axis: int) -> tuple[str, str]:
    """The directions of the left and the upper edge of an upright slice in RAS orientation.

    Left of a picture is the left of the patient (neurological convention).

    Args:
        axis: that the slice is across: 0 of a sagittal, 1 of a coronal, 2 of an axial slice.
    """
    return (("P", "S"), ("L", "S"), ("L", "A"))[axis]


def write_letters(axes: Axes, array: np.ndarray) -> None:
    """Write the directions of an axial slice of a volume on its picture; a picture has none."""
    if array.ndim == 2:
        return
    left, top = plane_letters(2)
    style: dict[str, Any] = {"transform": axes.transAxes, "color": "0.8", "fontsize": 7}
    axes.text(0.01, 0.5, left, ha="left", va="center", **style)
    axes.text(0.5, 0.99, top, ha="center", va="top", **style)


def axial_slice(array: np.ndarray, level: int) -> np.ndarray:
    """The axial slice (row, column) of a volume (x, y, z), anterior up; a picture is unchanged."""
    return array if array.ndim == 2 else upright(array[:, :, level])


def informative_level(mask: np.ndarray) -> int:
    """The axial level with most of the classes; the middle of an empty mask, 0 in 2D.

    Of each class counts the share of its voxels there. So small classes count as much as large
    ones, and a lesion in a few slices more than the organ that contains it.
    """
    if mask.ndim == 2:
        return 0
    classes = [value for value in np.unique(mask) if value]
    if not classes:
        return int(mask.shape[2] // 2)
    areas = [(mask == value).sum((0, 1)) for value in classes]
    return int(sum(area / area.sum() for area in areas).argmax())


def save_figure(figure: Figure, path: Path, dpi: int | None = None) -> None:
    """Write a figure, whole or not at all; makes its folder.

    Args:
        figure: to write.
        path: its suffix decides on the format.
        dpi: pixels per inch; None takes matplotlib's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        # without the version of matplotlib, the same figure is the same file
        figure.savefig(temporary, dpi=dpi, metadata={"Software": None})
