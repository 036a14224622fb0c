"""One DICOM file: its header, pixels and position; nothing in it is trusted.

Only the tags named here are read. Of a patient's identity nothing leaves this file but a hash that
groups scans.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.safe_open import open_regular

# headers end long before; the pixels of a whole study need not be read to list it
_HEADER_BYTES = 4 * 2**20
_MAX_FILE_BYTES = 2**30  # of one slice
_MAX_PIXELS = 2**26  # of one slice: 8192 x 8192
_PREAMBLE_BYTES = 128
# how files without a preamble begin: the number of the first group, little endian
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()
# byte order of pixels that are not compressed
_BYTE_ORDERS = {
    uid.ImplicitVRLittleEndian: "<",
    uid.ExplicitVRLittleEndian: "<",
    uid.ExplicitVRBigEndian: ">",
}
_FULL_BITS = 16  # of which no scan fills the whole range, so that a missing sign shows
_RESCALE_DEFAULTS = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}

# pydicom decodes no others: a damaged tag elsewhere does no harm
_HEADER_TAGS = [
    "SOPClassUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "SeriesNumber",
    "PatientID",
    "PatientName",
    "BurnedInAnnotation",
    "NumberOfFrames",
    "Rows",
    "ImageOrientationPatient",
]
_SLICE_TAGS = [
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
]


class DicomHeader(NamedTuple):
    """What a file declares, without its pixels."""

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    series: str  # SeriesInstanceUID; never shown, never part of a path
    study: str
    number: int | None  # SeriesNumber
    patient: str  # hash of the patient's identity, for grouping alone; "" if absent
    burned_in: bool  # the pixels contain text, perhaps a name
    frames: int
    has_pixels: bool
    directions: tuple[float, ...]  # of a row and of a column; () if absent


class Slice(NamedTuple):
    """One slice of a volume."""

    pixels: np.ndarray  # (row, column), float32, rescaled
    position: np.ndarray  # of the first pixel's centre, mm, left-posterior-superior
    directions: np.ndarray  # (2, 3): along a row, along a column
    spacing: tuple[float, float]  # mm between rows, between columns
    declared_gap: float | None  # SpacingBetweenSlices, mm
    whole_numbers: bool  # slope and intercept are


class _SliceFields(NamedTuple):
    """Values of a slice's header; an empty tuple where one is absent or not so many numbers."""

    syntax: str
    frames: int
    position: tuple[float, ...]
    directions: tuple[float, ...]
    spacing: tuple[float, ...]
    rescale: dict[str, tuple[float, ...]]
    declared_gap: tuple[float, ...]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, to the terminal or to a log: they quote values, and a value may be a name."""
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with a preamble or without; never raises."""
    try:
        with open_regular(path) as file:
            start = file.read(_PREAMBLE_BYTES + 4)
    except (DataError, OSError):
        return False
    # DICOM PS3.10, 7.1: 128 bytes of anything, then these four letters
    if start[_PREAMBLE_BYTES:] == b"DICM":
        return True
    # after the tag: a value representation in capitals, or a length below 2**16
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    implicit = start[6:8] == b"\0\0"
    return start[:2] in _FIRST_GROUPS and (explicit or implicit)


def says_dicom(path: Path) -> bool:
    """Whether a file has DICOM's magic word after its preamble, whatever its name; never raises."""
    try:
        with open_regular(path) as file:
            return file.read(_PREAMBLE_BYTES + 4)[_PREAMBLE_BYTES:] == b"DICM"
    except (DataError, OSError):
        return False


def read_header(path: Path) -> DicomHeader | None:
    """What a file declares; None where it cannot be read as DICOM."""
    try:
        with open_regular(path) as file, _quiet():
            dataset = _parse(file.read(_HEADER_BYTES), _HEADER_TAGS, pixels=False)
            patient = _patient(dataset)
            return DicomHeader(
                sop_class=str(dataset.get("SOPClassUID", "")),
                modality=str(dataset.get("Modality", "")),
                image_type=tuple(str(value) for value in _values(dataset.get("ImageType"))),
                series=str(dataset.get("SeriesInstanceUID", "")),
                study=str(dataset.get("StudyInstanceUID", "")),
                number=_integer(dataset.get("SeriesNumber")),
                patient=hashlib.sha256(patient).hexdigest() if patient else "",
                burned_in=str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
                frames=_integer(dataset.get("NumberOfFrames")) or 1,
                has_pixels="Rows" in dataset,
                directions=_numbers(dataset.get("ImageOrientationPatient"), 6),
            )
    except Exception:  # a damaged or hostile file may make the parser raise anything
        return None


def _patient(dataset: pydicom.Dataset) -> bytes:
    """PatientID, or PatientName where that is blank, as stored.

    Bytes, since no character set is trusted and nothing is decoded.
    """
    for tag in ("PatientID", "PatientName"):
        element = dataset.get_item(tag)
        text = bytes(element.value or b"").strip(b" \0") if element else b""
        if text:
            return text
    return b""


# the slice


@_quiet()
def read_slice(path: Path, name: str) -> Slice:
    """One slice, with `name` for messages: the file's own is often a UID, or a patient's.

    Raises:
        DataError: it is damaged, compressed in a way that cannot be read, in colour, or has no
            position.
    """
    dataset, fields = _parse_slice(_read_limited(path, name), name)
    if fields.frames > 1:
        raise DataError(
            f"{name}: several frames in one file (enhanced or multi-frame); "
            "convert it with dcm2niix"
        )
    directions = _checked_directions(fields, name)
    slope, intercept = _checked_rescale(fields, name)
    position = np.array(fields.position)
    height = float(position @ np.cross(*directions))
    pixels = _stored_values(dataset, fields.syntax, f"{name}: the slice at {height:.2f} mm")
    gap = fields.declared_gap
    return Slice(
        # slope and intercept may differ from slice to slice, as in PET
        pixels=pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept),
        position=position,
        # rounded cosines are not of length 1, which would change the spacing
        directions=directions / np.linalg.norm(directions, axis=1, keepdims=True),
        spacing=(fields.spacing[0], fields.spacing[1]),
        declared_gap=gap[0] if gap and gap[0] > 0 else None,
        whole_numbers=slope.is_integer() and intercept.is_integer(),
    )


def _read_limited(path: Path, name: str) -> bytes:
    with open_regular(path, f"{name}: a slice") as file:
        if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
            raise DataError(
                f"{name}: a slice of more than {_MAX_FILE_BYTES >> 20} MiB; "
                "convert it with dcm2niix"
            )
        return file.read()


def _parse_slice(raw: bytes, name: str) -> tuple[pydicom.Dataset, _SliceFields]:
    try:
        dataset = _parse(raw, _SLICE_TAGS, pixels=True)
        for tag in _SLICE_TAGS:
            dataset.get(tag)  # pydicom decodes a value on first access: here a failure is caught
        rescale = {
            tag: _numbers(dataset.get(tag, default), 1)
            for tag, default in _RESCALE_DEFAULTS.items()
        }
        fields = _SliceFields(
            # DICOM's default transfer syntax (PS3.5, 10.1)
            syntax=dataset.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian),
            frames=_integer(dataset.get("NumberOfFrames")) or 1,
            position=_numbers(dataset.get("ImagePositionPatient"), 3),
            directions=_numbers(dataset.get("ImageOrientationPatient"), 6),
            spacing=_numbers(dataset.get("PixelSpacing"), 2),
            rescale=rescale,
            declared_gap=_numbers(dataset.get("SpacingBetweenSlices"), 1),
        )
    except Exception:  # a damaged or hostile file may make the parser raise anything
        raise DataError(
            f"{name}: a slice cannot be read as DICOM; copy the series again from its source"
        ) from None
    return dataset, fields


def _checked_directions(fields: _SliceFields, name: str) -> np.ndarray:
    """The directions (2, 3), after a check of position, directions and spacing."""
    for tag, value in (
        ("ImagePositionPatient", fields.position),
        ("ImageOrientationPatient", fields.directions),
        ("PixelSpacing", fields.spacing),
    ):
        if not value:
            raise DataError(
                f"{name}: a slice has no usable {tag}; export it again, with its geometry"
            )
    directions = np.array(fields.directions).reshape(2, 3)
    # a hundredth, since some headers write the cosines with few digits
    if np.abs(directions @ directions.T - np.eye(2)).max() > 1e-2:
        raise DataError(
            f"{name}: its ImageOrientationPatient is no pair of perpendicular unit vectors; "
            "export it again"
        )
    if not min(fields.spacing) > 0:
        raise DataError(
            f"{name}: its PixelSpacing {fields.spacing} is not positive; export it again"
        )
    return directions


def _checked_rescale(fields: _SliceFields, name: str) -> tuple[float, float]:
    """Slope and intercept."""
    for tag, value in fields.rescale.items():
        if not value:
            raise DataError(
                f"{name}: a slice has an empty or impossible {tag}; "
                "export it again, with its values"
            )
        if tag == "RescaleSlope" and value[0] == 0:
            raise DataError(f"{name}: a slice has {tag} 0; export it again, with its values")
    return fields.rescale["RescaleSlope"][0], fields.rescale["RescaleIntercept"][0]


def _stored_values(dataset: pydicom.Dataset, syntax: str, slice_name: str) -> np.ndarray:
    """The stored values (row, column) of a grey slice; those of MONOCHROME1 inverted."""
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
    allocated = _integer(dataset.get("BitsAllocated"))
    stored = _integer(dataset.get("BitsStored"))
    highest = _integer(dataset.get("HighBit", (stored or 0) - 1))
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
    rows = _integer(dataset.get("Rows"))
    columns = _integer(dataset.get("Columns"))
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


# untrusted values


def _parse(raw: bytes, tags: Sequence[str], *, pixels: bool) -> pydicom.Dataset:
    if _DEFLATED in raw[:_HEADER_BYTES]:  # pydicom would inflate it whole, to whatever size
        raise ValueError("deflated")
    return pydicom.dcmread(
        BytesIO(raw), force=True, stop_before_pixels=not pixels, specific_tags=list(tags)
    )


def _values(value: Any) -> Sequence[Any]:
    """The values of a tag that may have one, several or none."""
    if value is None:
        return []
    return [value] if isinstance(value, str | float | int) else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """The `count` finite numbers of a tag, or none."""
    try:
        numbers = tuple(float(number) for number in _values(value))
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
