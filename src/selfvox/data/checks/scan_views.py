"""A small picture of a scan: its middle slices in grey or colour, with its label outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfvox.data.formats.image import Image
from selfvox.data.preparation.geometry import (
    Geometry,
    canonical_orientation,
    canonical_spacing,
    orient,
)
from selfvox.ops.boxes import bounding_box
from selfvox.plotting import informative_level, plane_letters, upright
from selfvox.views import draw_view, write_letters

EDGE = 128  # pixels of one view


def draw_views(image: Image, geometry: Geometry, label: np.ndarray | None = None) -> np.ndarray:
    """Axial, coronal and sagittal slice next to each other, or a picture; uint8 (row, column, 3).

    Slices go through the middle of the foreground, axial ones where the label has most of its
    highest class, and show the box around both; volumes keep their proportions in mm. Of several
    channels the first is shown; three of a picture are its colours.

    Args:
        image: the scan.
        geometry: with the box around its foreground.
        label: (*space) class numbers on the same grid.
    """
    orientation = canonical_orientation(image)
    data = orient(np.asarray(image.data), orientation)
    mask = None if label is None else orient(label[None], orientation)[0]
    if image.spatial_dims == 2:
        channels = data if len(data) == 3 else data[:1]
        return draw_view(np.moveaxis(channels, 0, -1), (1.0, 1.0), EDGE, mask)
    spacing_mm = canonical_spacing(image, orientation)
    box = _shown_box(geometry, mask)
    volume = data[0][box]
    shown = None if mask is None else mask[box]
    levels = [edge // 2 for edge in volume.shape]
    if shown is not None and shown.any():
        levels[2] = informative_level(shown)
    # axial, coronal, sagittal
    views = [_slice_view(volume, shown, axis, levels[axis], spacing_mm) for axis in (2, 1, 0)]
    return np.concatenate(views, axis=1)


def _shown_box(geometry: Geometry, mask: np.ndarray | None) -> tuple[slice, ...]:
    """The box around the foreground and the label, canonical axes."""
    boxes = [geometry.box]
    if mask is not None and mask.any():
        boxes.append(bounding_box(mask > 0, 1))
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def _slice_view(
    volume: np.ndarray,
    mask: np.ndarray | None,
    axis: int,
    level: int,
    spacing_mm: Sequence[float],
) -> np.ndarray:
    """The view of one slice of a volume in RAS orientation."""
    plane = upright(volume.take(level, axis))[..., None]
    outlined = None if mask is None else upright(mask.take(level, axis))
    along, up = [mm for number, mm in enumerate(spacing_mm) if number != axis]
    view = draw_view(plane, (up, along), EDGE, outlined)
    return write_letters(view, plane_letters(axis))
