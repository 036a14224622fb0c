"""Volumes for the viewer: NIfTI files in memory, in few bytes, on the grid of their scan."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import isal_zlib

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.views import Window, grey_window

# of one volume: more are shown at half of the resolution
MOST_VOXELS = 40_000_000
_CT_BELOW = -500  # only CT has voxels of air that are as low
_CT_RANGE = (-1024, 3071)  # Hounsfield units of 12 bits
_LEVEL = 3  # of compression: the smallest file of isal
_WITH_GZIP_HEADER = 31
_COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def is_ct(channel: np.ndarray) -> bool:
    """Whether values are Hounsfield units, as far as the values reveal it."""
    return float(channel.min()) < _CT_BELOW


def shown_window(channel: np.ndarray) -> Window:
    """The values that are black and white at first: 400 units around 40 of CT, else percentiles."""
    return (-160.0, 240.0) if is_ct(channel) else grey_window(channel)


def step_for(shape: tuple[int, ...], most_voxels: int = MOST_VOXELS) -> int:
    """Every how many voxels are shown along each axis, so that there are at most `most_voxels`."""
    step = 1
    while math.prod(-(-edge // step) for edge in shape) > most_voxels:
        step += 1
    return step


def scan_bytes(image: Image, channel: int, step: int) -> bytes:
    """A channel of a scan as NIfTI: 8 bits between its percentiles, 16 of CT; a colour picture.

    Args:
        image: the scan.
        channel: which one; 0 of a colour picture.
        step: every how many voxels are shown.
    """
    if image.spatial_dims == 2 and len(image.data) == 3:
        colours = np.clip(np.moveaxis(image.data, 0, -1), 0, 255).astype(np.uint8)
        return _pack(_turned(colours).view(_COLOUR)[..., 0], np.eye(4))
    values = np.asarray(image.data[channel], np.float32)
    if image.spatial_dims == 2:
        values = _turned(values)
    values = _every(values, step)
    affine = _coarse_affine(image.affine, step)
    if is_ct(values):
        return _pack(np.rint(np.clip(values, *_CT_RANGE)).astype(np.int16), affine)
    low, high = grey_window(values)
    slope = max(high - low, 1e-6) / 255
    return _pack(
        np.clip(np.rint((values - low) / slope), 0, 255).astype(np.uint8), affine, slope, low
    )


def label_bytes(label: np.ndarray, like: Image, step: int) -> bytes:
    """Class numbers (*space) as NIfTI.

    Of a volume at full resolution, it has the header that `predict` writes, without the names of
    classes, so that a label that is drawn in the browser can be saved with it.
    """
    if like.spatial_dims == 2:
        return _pack(_turned(label), np.eye(4))
    if step > 1:
        return _pack(_every(label, step), _coarse_affine(like.affine, step))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        images.write_label(path, label, like)
        return path.read_bytes()


def map_bytes(values: np.ndarray, like: Image, step: int, largest: float) -> bytes:
    """Numbers (*space) from 0 to `largest` as NIfTI of 8 bits."""
    shown = _turned(values) if like.spatial_dims == 2 else values
    slope = max(largest, 1e-6) / 255
    rounded = np.clip(np.rint(_every(shown, step) / slope), 0, 255).astype(np.uint8)
    return _pack(rounded, _coarse_affine(like.affine, step), slope)


def _pack(array: np.ndarray, affine: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["scl_slope"] = slope
    header["scl_inter"] = inter
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    content = header.binaryblock.ljust(header.single_vox_offset, b"\0")
    content += array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    packed: bytes = isal_zlib.compress(content, level=_LEVEL, wbits=_WITH_GZIP_HEADER)
    return packed


def _turned(picture: np.ndarray) -> np.ndarray:
    """A picture (row, column, ...) as a volume of one level (x, y, 1, ...), its top at high y."""
    return np.ascontiguousarray(picture.swapaxes(0, 1)[:, ::-1][:, :, None])


def _every(values: np.ndarray, step: int) -> np.ndarray:
    return values[(slice(None, None, step),) * 3] if step > 1 else values


def _coarse_affine(affine: np.ndarray, step: int) -> np.ndarray:
    """Of every `step`-th voxel, the first one included."""
    return affine @ np.diag([step, step, step, 1.0])
