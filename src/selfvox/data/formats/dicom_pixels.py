"""Pixels of a DICOM slice as the numbers that are stored: compressed or not, signed or not."""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from selfvox.data.formats.dicom_tags import integer_of
from selfvox.data.naming import printable
from selfvox.errors import DataError

_MAX_PIXELS = 2**26  # of one slice: 8192 x 8192
# byte order of pixels that are not compressed
_BYTE_ORDERS = {
    uid.ImplicitVRLittleEndian: "<",
    uid.ExplicitVRLittleEndian: "<",
    uid.ExplicitVRBigEndian: ">",
}
_FULL_BITS = 16  # of which no scan fills the whole range, so that a missing sign shows


def stored_values(dataset: pydicom.Dataset, syntax: str, slice_name: str) -> np.ndarray:
    """The stored values (row, column) of a grey slice; those of MONOCHROME1 inverted.

    Args:
        dataset: the tags of the slice.
        syntax: its transfer syntax.
        slice_name: what messages call it.

    Raises:
        DataError: it is in colour, damaged, or compressed in a way that cannot be read.
    """
    photometric = _checked_photometric(dataset, slice_name)
    allocated, stored = _bits(dataset, slice_name)
    shape = _shape(dataset, slice_name)
    sign = dataset.get("PixelRepresentation", 0)
    if sign not in (0, 1):
        raise DataError(
            f"{slice_name} has a PixelRepresentation other than 0 and 1; export it again"
        )
    if syntax in _BYTE_ORDERS:
        dtype = f"{_BYTE_ORDERS[uid.UID(syntax)]}u{allocated // 8}"
        values = _uncompressed(dataset, dtype, shape, slice_name)
    else:
        values = _decoded(dataset, uid.UID(syntax), shape, slice_name)
    values &= (1 << stored) - 1  # bits above the stored ones may contain an overlay
    low = 0
    if sign == 1:
        low = -(1 << (stored - 1))
        # two's complement of the stored bits, which may be fewer than the allocated ones
        values = np.where(values >= -low, values + 2 * low, values)
    elif stored == _FULL_BITS and _looks_wrapped(values):
        raise DataError(
            f"{slice_name} has values near 0 and near {2**_FULL_BITS - 1} and none between: "
            "negative ones not marked as such (PixelRepresentation), or a padding value; "
            "correct the header or export it again"
        )
    if photometric == "MONOCHROME1":  # the lowest value is shown white
        return 2 * low + (1 << stored) - 1 - values
    return values


def _checked_photometric(dataset: pydicom.Dataset, slice_name: str) -> str:
    """MONOCHROME1 or 2; all else is not one plain number per pixel."""
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    grey = photometric in ("MONOCHROME1", "MONOCHROME2")
    if not grey or dataset.get("SamplesPerPixel", 1) != 1:
        raise DataError(
            f"{slice_name} is in colour ({printable(photometric[:20])}); leave this series out"
        )
    if "ModalityLUTSequence" in dataset:
        raise DataError(f"{slice_name} has values behind a lookup table; convert it with dcm2niix")
    if "PixelData" not in dataset:
        raise DataError(
            f"{slice_name} has no whole-number pixels (PixelData); convert it with dcm2niix"
        )
    return photometric


def _bits(dataset: pydicom.Dataset, slice_name: str) -> tuple[int, int]:
    """Bits allocated to a pixel, and those of them that store its value: the lowest ones."""
    allocated = integer_of(dataset.get("BitsAllocated"))
    stored = integer_of(dataset.get("BitsStored"))
    highest = integer_of(dataset.get("HighBit", (stored or 0) - 1))
    if (
        allocated not in (8, 16, 32)
        or not stored
        or not 0 < stored <= allocated
        or highest != stored - 1
    ):
        raise DataError(
            f"{slice_name} has {stored} bits in {allocated} (highest {highest}); "
            "export it with 8, 16 or 32 bits"
        )
    return allocated, stored


def _shape(dataset: pydicom.Dataset, slice_name: str) -> tuple[int, int]:
    rows = integer_of(dataset.get("Rows"))
    columns = integer_of(dataset.get("Columns"))
    if not rows or not columns or min(rows, columns) < 0:
        raise DataError(f"{slice_name} has no usable Rows and Columns; export it again")
    if rows * columns > _MAX_PIXELS:
        raise DataError(
            f"{slice_name} asks for {rows} x {columns} pixels, more than any slice has; "
            "export it again"
        )
    return rows, columns


def _uncompressed(
    dataset: pydicom.Dataset, dtype: str, shape: tuple[int, int], slice_name: str
) -> np.ndarray:
    # None where the element is empty
    pixels = dataset.PixelData if isinstance(dataset.PixelData, bytes) else b""
    count = shape[0] * shape[1]
    expected = count * np.dtype(dtype).itemsize
    if len(pixels) not in (expected, expected + expected % 2):  # padded to an even length
        raise DataError(
            f"{slice_name} has {len(pixels)} bytes of pixels, its header asks for {expected}; "
            "copy it again"
        )
    # a copy, since the bits are masked in place; in 64 bits no sum below overflows
    return np.frombuffer(pixels, dtype, count).reshape(shape).astype(np.int64)


def _decoded(
    dataset: pydicom.Dataset, syntax: uid.UID, shape: tuple[int, int], slice_name: str
) -> np.ndarray:
    """Compressed pixels as they are stored, by a decoder that is installed."""
    compression = printable(syntax.name[:60])
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{slice_name} is compressed ({compression}), which cannot be read; "
            "convert it with dcm2niix"
        ) from None
    if not decoder.is_available:
        remedy = "convert it with dcm2niix"
        if any(package.startswith("gdcm") for package in decoder.missing_dependencies):
            remedy = f"pip install 'selfvox[jpeg]', or {remedy}"
        raise DataError(
            f"{slice_name} is compressed ({compression}), for which no decoder is installed; "
            f"{remedy}"
        )
    try:
        # raw: as stored, without a conversion of colours
        decoded, _ = decoder.as_array(dataset, raw=True)
        values: np.ndarray = decoded.reshape(shape).astype(np.int64)
    except Exception:  # decoders fail in many ways, all of which mean damaged pixels
        raise DataError(
            f"{slice_name} has damaged pixels ({compression}); copy it again from its source"
        ) from None
    return values


def _looks_wrapped(values: np.ndarray) -> bool:
    """Whether unsigned values are on both sides of the middle half of their range, none in it."""
    quarter = 2**_FULL_BITS // 4
    low = values < quarter
    high = values >= 3 * quarter
    return bool(low.any() and high.any() and (low | high).all())
