"""A small picture of a scan: its middle slices in grey or colour, with its label outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageColor

from selfvox.data.formats.image import Image
from selfvox.data.preparation.geometry import (
    Geometry,
    canonical_orientation,
    canonical_spacing,
    orient,
)
from selfvox.ops.boxes import bounding_box
from selfvox.plotting import class_colour, informative_level, upright

EDGE = 128  # pixels of one view
_DARKEST = 0.5  # percentiles that become black and white
_BRIGHTEST = 99.5


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
        return _view(np.moveaxis(channels, 0, -1), mask, (1.0, 1.0))
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
    return _view(plane, outlined, (up, along))


def _view(plane: np.ndarray, mask: np.ndarray | None, pixel_mm: tuple[float, float]) -> np.ndarray:
    """A plane (row, column, channel) with outlines, in the middle of a black square of `EDGE`."""
    height = plane.shape[0] * pixel_mm[0]
    width = plane.shape[1] * pixel_mm[1]
    scale = EDGE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Pillow.fromarray(_to_bytes(plane)).resize(size, Pillow.Resampling.BILINEAR)
    pixels = np.array(picture.convert("RGB"))
    if mask is not None:
        # nearest: classes must not be mixed
        small = Pillow.fromarray(mask.astype(np.int32)).resize(size, Pillow.Resampling.NEAREST)
        _outline(pixels, np.asarray(small))
    view = np.zeros((EDGE, EDGE, 3), np.uint8)
    top = (EDGE - size[1]) // 2
    left = (EDGE - size[0]) // 2
    view[top : top + size[1], left : left + size[0]] = pixels
    return view


def _to_bytes(plane: np.ndarray) -> np.ndarray:
    """Grey (row, column) or colour (row, column, 3) of 8 bits; colours share one scale."""
    values = np.asarray(plane, np.float32)
    low, high = np.percentile(values, [_DARKEST, _BRIGHTEST])
    if plane.shape[2] == 3:
        low = min(low, 0.0)
    shown = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    grey: np.ndarray = np.ascontiguousarray((255 * shown).astype(np.uint8))
    return grey[..., 0] if plane.shape[2] == 1 else grey


def _outline(pixels: np.ndarray, mask: np.ndarray) -> None:
    """Colour the pixels of each class that have a neighbour of another class."""
    padded = np.pad(mask, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([neighbour != middle for neighbour in neighbours], axis=0)
    for value in np.unique(mask[border & (mask > 0)]):
        pixels[border & (mask == value)] = ImageColor.getrgb(class_colour(int(value)))
