"""The mosaic of a case: slices through its label next to each other, with outlines."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow

from selfvox.data.formats.image import Image
from selfvox.data.preparation.geometry import (
    canonical_orientation,
    canonical_spacing,
    orient,
)
from selfvox.ops.boxes import bounding_box
from selfvox.plotting import informative_level, plane_letters, upright
from selfvox.reports.volumes import shown_window
from selfvox.views import Pixels, Window, draw_view, write_letters

EDGE = 180  # pixels of a slice
_AXIAL = (0.15, 0.5, 0.85)  # places of axial slices within the extent of the label
_DARK = 0.05  # of the window: what is brighter is shown
_QUALITY = 85


def draw_mosaic(image: Image, label: np.ndarray | None, truth: np.ndarray | None = None) -> Pixels:
    """Axial slices, the informative one first, a coronal and a sagittal one; or a picture.

    Args:
        image: the scan, of which the first channel is shown, or three colours of a picture.
        label: (*space) class numbers on the same grid, with solid outlines.
        truth: likewise, dotted.
    """
    orientation = canonical_orientation(image)
    if image.spatial_dims == 2:
        channels = image.data if len(image.data) == 3 else image.data[:1]
        colours = np.moveaxis(channels, 0, -1)
        return draw_view(colours, (1.0, 1.0), 2 * EDGE, label, dotted=truth)
    window = shown_window(image.data[0])
    volume = orient(np.asarray(image.data[:1]), orientation)[0]
    masks = [
        None if mask is None else orient(mask[None], orientation)[0] for mask in (label, truth)
    ]
    box = _shown_box(volume, masks, window)
    volume = volume[box]
    masks = [None if mask is None else mask[box] for mask in masks]
    spacing_mm = canonical_spacing(image, orientation)
    decisive = next((mask for mask in masks if mask is not None and mask.any()), None)
    views = [
        _draw_slice(volume, masks, axis, level, spacing_mm, window)
        for axis, level in _chosen_slices(volume.shape, decisive)
    ]
    return np.concatenate(views, axis=1)


def jpeg_bytes(pixels: Pixels) -> bytes:
    """Pixels as a file; outlines keep their colour, since it is stored for every pixel."""
    content = io.BytesIO()
    Pillow.fromarray(pixels).save(content, "JPEG", quality=_QUALITY, subsampling=0)
    return content.getvalue()


def _chosen_slices(shape: Sequence[int], mask: np.ndarray | None) -> list[tuple[int, int]]:
    """Axis and level of each slice: where the label is, or through the middle without one."""
    if mask is None:
        axial = [int(place * (shape[2] - 1)) for place in (0.5, 0.35, 0.65)]
        return [*((2, level) for level in axial), (1, shape[1] // 2), (0, shape[0] // 2)]
    levels = np.flatnonzero(mask.any((0, 1)))
    axial = [int(levels[int(place * (len(levels) - 1))]) for place in _AXIAL]
    axial = list(dict.fromkeys([informative_level(mask), *axial]))
    coronal = int((mask > 0).sum((0, 2)).argmax())
    sagittal = int((mask > 0).sum((1, 2)).argmax())
    return [*((2, level) for level in axial), (1, coronal), (0, sagittal)]


def _draw_slice(
    volume: np.ndarray,
    masks: Sequence[np.ndarray | None],
    axis: int,
    level: int,
    spacing_mm: Sequence[float],
    window: Window,
) -> Pixels:
    plane = upright(volume.take(level, axis))[..., None]
    label, truth = (None if mask is None else upright(mask.take(level, axis)) for mask in masks)
    along, up = [mm for number, mm in enumerate(spacing_mm) if number != axis]
    view = draw_view(plane, (up, along), EDGE, label, dotted=truth, window=window)
    return write_letters(view, plane_letters(axis))


def _shown_box(
    volume: np.ndarray, masks: Sequence[np.ndarray | None], window: Window
) -> tuple[slice, ...]:
    """The box around what is brighter than black, and around the masks."""
    low, high = window
    is_shown = volume > low + _DARK * (high - low)
    for mask in masks:
        if mask is not None:
            is_shown |= mask > 0
    return bounding_box(is_shown, 1) if is_shown.any() else (slice(None),) * 3
