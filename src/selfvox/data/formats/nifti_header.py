"""The header of a NIfTI file: which version it is, and how the voxels are stored."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import nibabel as nib
import numpy as np

from selfvox.errors import DataError

_NIFTI1_BYTES = 348
NIFTI2_BYTES = 540  # the longer of the two headers

# datatype codes of the NIfTI standard, <https://nifti.nimh.nih.gov/nifti-1>
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED_DTYPES = {
    32: "complex voxels; save the magnitude",
    1792: "complex voxels; save the magnitude",
    2048: "complex voxels; save the magnitude",
    128: "colour (RGB) voxels; save one grey value per voxel",
    2304: "colour (RGBA) voxels; save one grey value per voxel",
    1536: "128-bit voxels; save it as float32",
    1: "1-bit voxels; save it as uint8",
}


class Layout(NamedTuple):
    """How the voxels are stored, as the header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def voxels(self) -> int:
        """How many there are."""
        return math.prod(self.shape)  # Python integers: the product cannot overflow

    @property
    def end(self) -> int:
        """Bytes of the header and the voxels."""
        return self.offset + self.voxels * self.dtype.itemsize


def parse_header(raw: bytes, name: str) -> tuple[nib.Nifti1Header, list[str]]:
    """The header in `raw`, the unpacked start of a file of either version and byte order; notes.

    Raises:
        DataError: it is cut, of a format that is not NIfTI, or half of a pair of files.
    """
    if raw[4:7] == b"ni2" or raw[344:347] == b"ni1":
        raise DataError(f"{name}: one half of a .hdr/.img pair; convert it to a single .nii.gz")
    if raw[4:12] == b"n+2\0\r\n\x1a\n":
        header_class = nib.Nifti2Header
        size = NIFTI2_BYTES
        dimensions = raw[16:24]
    elif raw[344:348] == b"n+1\0":
        header_class = nib.Nifti1Header
        size = _NIFTI1_BYTES
        dimensions = raw[40:42]
    elif len(raw) < _NIFTI1_BYTES:
        raise DataError(
            f"{name}: only {len(raw)} bytes, less than a NIfTI header; "
            "copy it again from its source"
        )
    else:
        raise DataError(f"{name}: not a NIfTI file (wrong magic bytes); export it as NIfTI")
    if len(raw) < size:
        raise DataError(
            f"{name}: the header is cut at {len(raw)} of {size} bytes; "
            "copy it again from its source"
        )
    endianness = "<" if _byte_order(dimensions, name) == "little" else ">"
    # unchecked: nibabel would refuse headers that are repaired later, with a note
    header = header_class(raw[:size], endianness=endianness, check=False)
    declared_size = int(header["sizeof_hdr"])
    if declared_size == size:
        return header, []
    return header, [f"header says its size is {declared_size} bytes; it is {size}"]


def _byte_order(dimensions: bytes, name: str) -> Literal["little", "big"]:
    """The byte order in which the number of dimensions is 1 to 7."""
    # the size of the header would tell it too, but some tools write another
    if 1 <= int.from_bytes(dimensions, "little") <= 7:
        return "little"
    if 1 <= int.from_bytes(dimensions, "big") <= 7:
        return "big"
    raise DataError(f"{name}: the header's number of dimensions is not 1 to 7; export it again")


def read_layout(header: nib.Nifti1Header, name: str, notes: list[str]) -> Layout:
    """How the voxels are stored; `notes` get a line for each field that is not taken as it is.

    Raises:
        DataError: the voxels cannot be read: their number, type, place or scaling.
    """
    shape = _shape(header, name)
    dtype = _dtype(header, name, notes)
    offset = float(header["vox_offset"])
    # NaN fails the first comparison, infinity the second
    if not (offset >= header.single_vox_offset and offset.is_integer()):
        raise DataError(
            f"{name}: voxels cannot start at byte {offset:g} (vox_offset); export it again"
        )
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # 0 means no scaling; NaN is taken for it
        notes.append(f"slope {slope:g} taken as 1, intercept as 0")
        slope = 1.0
        intercept = 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError(
            f"{name}: slope {slope:g} and intercept {intercept:g} are not finite; export it again"
        )
    return Layout(shape, dtype, int(offset), slope, intercept)


def _shape(header: nib.Nifti1Header, name: str) -> tuple[int, ...]:
    """Three or four lengths, without trailing axes of length 1."""
    dims = [int(length) for length in header["dim"][1 : int(header["dim"][0]) + 1]]
    if min(dims) < 1:
        raise DataError(
            f"{name}: dimensions {tuple(dims)} in the header are not all positive; export it again"
        )
    # many tools write a fourth axis of length 1
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) > 4:
        raise DataError(
            f"{name}: has {len(dims)} dimensions {tuple(dims)}; "
            "save one 3D volume, or 4D with channels last"
        )
    # a plane becomes a single slice, which is refused later with a remedy
    dims += [1] * (3 - len(dims))
    return tuple(dims)


def _dtype(header: nib.Nifti1Header, name: str, notes: list[str]) -> np.dtype:
    code = int(header["datatype"])
    if code not in _DTYPES:
        reason = _REFUSED_DTYPES.get(code, f"unknown voxel type {code}; export it again")
        raise DataError(f"{name}: {reason}")
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    bits = 8 * dtype.itemsize
    if int(header["bitpix"]) != bits:
        notes.append(
            f"header says {int(header['bitpix'])} bits per voxel; its type {dtype.name} has {bits}"
        )
    return dtype
