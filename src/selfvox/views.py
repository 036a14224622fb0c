"""Views of slices as pixels: in the proportions of the body, with outlined classes and letters."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow
from PIL import ImageColor, ImageDraw

from selfvox.plotting import class_colour

# percentiles of the values that become black and white
DARKEST = 0.5
BRIGHTEST = 99.5

Window = tuple[float, float]  # the values that become black and white
Pixels = np.ndarray  # uint8 (row, column, 3)


def grey_window(values: np.ndarray) -> Window:
    """The values that become black and white: few bright voxels would leave the rest black."""
    low, high = np.percentile(np.asarray(values, np.float32), (DARKEST, BRIGHTEST))
    return float(low), float(high)


def draw_view(
    plane: np.ndarray,
    pixel_mm: tuple[float, float],
    edge: int,
    mask: np.ndarray | None = None,
    *,
    dotted: np.ndarray | None = None,
    window: Window | None = None,
) -> Pixels:
    """A slice in the middle of a black square, with the outlines of its classes.

    Args:
        plane: (row, column, channel), one channel or three colours, of any values.
        pixel_mm: height and width of a pixel of the plane.
        edge: of the square, in pixels.
        mask: (row, column) class numbers, outlined.
        dotted: a second mask, such as the truth, with dotted outlines.
        window: of the values; by default that of the plane.
    """
    height = plane.shape[0] * pixel_mm[0]
    width = plane.shape[1] * pixel_mm[1]
    scale = edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = Pillow.fromarray(_to_bytes(plane, window))
    pixels = np.array(grey.resize(size, Pillow.Resampling.BILINEAR).convert("RGB"))
    if dotted is not None:
        _outline(pixels, _resized(dotted, size), is_dotted=True)
    if mask is not None:
        _outline(pixels, _resized(mask, size))
    view = np.zeros((edge, edge, 3), np.uint8)
    top = (edge - size[1]) // 2
    left = (edge - size[0]) // 2
    view[top : top + size[1], left : left + size[0]] = pixels
    return view


def write_letters(view: Pixels, letters: tuple[str, str]) -> Pixels:
    """The view with the directions of its left edge and its upper edge, such as `L` and `A`."""
    picture = Pillow.fromarray(view)
    pen = ImageDraw.Draw(picture)
    left, top = letters
    middle = len(view) // 2
    pen.text((2, middle), left, fill=(200, 200, 200), anchor="lm")
    pen.text((middle, 1), top, fill=(200, 200, 200), anchor="ma")
    return np.array(picture)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # nearest: classes must not be mixed
    small = Pillow.fromarray(mask.astype(np.int32)).resize(size, Pillow.Resampling.NEAREST)
    return np.asarray(small)


def _to_bytes(plane: np.ndarray, window: Window | None) -> np.ndarray:
    """Grey (row, column) or colour (row, column, 3) of 8 bits; colours share one scale."""
    values = np.asarray(plane, np.float32)
    low, high = grey_window(values) if window is None else window
    if plane.shape[2] == 3:
        low = min(low, 0.0)
    shown = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    grey: np.ndarray = np.ascontiguousarray((255 * shown).astype(np.uint8))
    return grey[..., 0] if plane.shape[2] == 1 else grey


def _outline(pixels: Pixels, mask: np.ndarray, is_dotted: bool = False) -> None:
    """Colour the pixels of each class that have a neighbour of another class."""
    padded = np.pad(mask, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([neighbour != middle for neighbour in neighbours], axis=0)
    if is_dotted:
        rows, columns = np.indices(border.shape)
        border &= (rows + columns) % 4 < 2
    for value in np.unique(mask[border & (mask > 0)]):
        pixels[border & (mask == value)] = ImageColor.getrgb(class_colour(int(value)))
