"""Likeness: a coarse picture of each scan, by which a resampled copy of it is recognised."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

CELLS = {2: 32, 3: 16}  # along each axis, by the number of axes
REACH = 2.0  # half the edge of all cells together, in standard deviations of the bright voxels
BLUR = 1.0  # in cells: most scans of one kind share what is coarser
# share of equal bits. Of other scans of heads, hippocampi, tumours and fundus photographs at most
# .89, of copies with two thirds to three halves of the voxel size at least .96
# (docs/results-log.md)
ALIKE = 0.94
SAMPLE = 2**18  # voxels that the range of the intensities is estimated from


def coarse_picture(data: np.ndarray) -> str:
    """A coarse picture of a scan, as text.

    For each cell of a grid a bit: whether it is brighter than its neighbourhood. Where the cells
    are follows from the centre and the spread of the intensities along each axis. So nearly all
    bits stay the same if a scan is resampled, has other margins, or its intensities are scaled. It
    is another picture if the scan is turned, so prepared scans are compared, which are not.

    Args:
        data: prepared (channel, *space); the mean over the channels is taken.

    Returns:
        The bits, base64; empty for a constant scan.
    """
    image = np.asarray(data, dtype=np.float32).mean(0)
    sample = image.ravel()[:: max(1, image.size // SAMPLE)]
    image = image.clip(*np.percentile(sample, (1, 99)))
    image -= image.min()
    total = float(image.sum(dtype=np.float64))
    if total == 0:
        return ""
    cells = image
    for axis in range(image.ndim):
        others = tuple(other for other in range(image.ndim) if other != axis)
        profile = image.sum(others, dtype=np.float64) / total
        shares = _shares_of_cells(profile, CELLS[image.ndim])
        cells = np.moveaxis(np.tensordot(shares, cells, axes=(1, axis)), 0, axis)
    contrast = cells - ndimage.gaussian_filter(cells, BLUR, mode="nearest")
    bits = contrast >= np.median(contrast)
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _shares_of_cells(profile: np.ndarray, cells: int) -> np.ndarray:
    """How much of each voxel along an axis is in each cell (cell, voxel).

    Args:
        profile: the share of all intensity at each position of the axis.
        cells: how many.
    """
    starts = np.arange(len(profile))
    centre = float((profile * (starts + 0.5)).sum())
    spread = float(np.sqrt((profile * (starts + 0.5 - centre) ** 2).sum()))
    edges = centre + REACH * spread * np.linspace(-1, 1, cells + 1)
    first = np.maximum(edges[:-1, None], starts)
    last = np.minimum(edges[1:, None], starts + 1)
    shares: np.ndarray = (last - first).clip(min=0).astype(np.float32)
    return shares


class CoarsePictures:
    """Coarse pictures of many scans, to find the one that another scan is a copy of.

    Args:
        texts: from `coarse_picture`.
    """

    def __init__(self, texts: Iterable[str]):
        # pictures of 2D and of 3D scans have different lengths; a constant scan has none
        places: dict[int, list[int]] = {}
        pictures: dict[int, list[np.ndarray]] = {}
        for place, text in enumerate(texts):
            if text:
                places.setdefault(len(text), []).append(place)
                pictures.setdefault(len(text), []).append(_packed_bits(text))
        self._places = places
        self._pictures = {length: np.stack(bits) for length, bits in pictures.items()}

    def find(self, text: str) -> int | None:
        """The place of the picture that this one is most like; None if it is a copy of none."""
        pictures = self._pictures.get(len(text))
        if pictures is None:
            return None
        different = np.bitwise_count(pictures ^ _packed_bits(text)).sum(1)
        best = int(different.argmin())
        share = 1 - different[best] / (8 * len(base64.b64decode(text)))
        return self._places[len(text)][best] if share >= ALIKE else None


def _packed_bits(text: str) -> np.ndarray:
    """The bits in words of 64, which are compared faster than bytes; zeros at the end."""
    content = base64.b64decode(text)
    return np.frombuffer(content + bytes(-len(content) % 8), dtype=np.uint64)
