"""One DICOM file: what it says of itself, its pixels and where they lie; nothing in it is trusted.

Only the tags named here are read; of a patient's identity nothing leaves this file but a hash that groups scans.
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

from selfvox.data.formats.safe_open import open_regular
from selfvox.data.naming import printable
from selfvox.errors import DataError

_HEADER_BYTES = 4 * 2**20
_MOST_BYTES = 2**30  # of one slice's file
_MOST_PIXELS = 2**26  # of one slice: 8192 x 8192
_PREAMBLE = 128
# of files without a preamble: the first group, in little-endian order
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()
_PLAIN = {
    uid.ImplicitVRLittleEndian: "<",
    uid.ExplicitVRLittleEndian: "<",
    uid.ExplicitVRBigEndian: ">",
}
_WRAPS = 16  # stored bits: a sign not marked shows, since no scan fills the whole range

_ABOUT = [
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
_SLICE = [
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
    """What a file says of itself, without its pixels."""

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    series: str  # SeriesInstanceUID; never shown, never part of a path
    study: str
    number: int | None  # SeriesNumber
    patient: str  # hash of the patient's identity, for grouping alone; "" where nothing is said
    burned_in: bool
    frames: int
    has_pixels: bool
    directions: tuple[float, ...]  # of a row and of a column; () where nothing is said


class Slice(NamedTuple):
    """What a file holds of a volume."""

    pixels: np.ndarray  # (row, column), float32, rescaled
    position: np.ndarray  # of the first pixel's centre, mm, left-posterior-superior
    directions: np.ndarray  # (2, 3): along a row, along a column
    spacing: tuple[float, float]  # mm between rows, between columns
    said: float | None  # SpacingBetweenSlices
    whole: bool  # slope and intercept are whole numbers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, to the terminal or to a log: they quote values, and a value may be a name."""
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with a preamble or without; never raises."""
    try:
        with open_regular(path) as file:
            start = file.read(_PREAMBLE + 4)
    except (DataError, OSError):
        return False
    explicit, implicit = start[4:6].isalpha() and start[4:6].isupper(), start[6:8] == b"\0\0"
    return start[_PREAMBLE:] == b"DICM" or (start[:2] in _FIRST_GROUPS and (explicit or implicit))


def read_header(path: Path) -> DicomHeader | None:
    """What a file says of itself; None where it cannot be read as DICOM."""
    try:
        with open_regular(path) as file, _quiet():
            found = _parsed(file.read(_HEADER_BYTES), _ABOUT, pixels=False)
            # bytes as they stand: no character set is trusted, and nothing is decoded
            told = [
                each.value for tag in ("PatientID", "PatientName") if (each := found.get_item(tag))
            ]
            patient = next(
                (text for value in told if (text := bytes(value or b"").strip(b" \0"))), b""
            )
            return DicomHeader(
                sop_class=str(found.get("SOPClassUID", "")),
                modality=str(found.get("Modality", "")),
                image_type=tuple(str(each) for each in _several(found.get("ImageType"))),
                series=str(found.get("SeriesInstanceUID", "")),
                study=str(found.get("StudyInstanceUID", "")),
                number=_whole(found.get("SeriesNumber")),
                patient=hashlib.sha256(patient).hexdigest() if patient else "",
                burned_in=str(found.get("BurnedInAnnotation", "")).upper() == "YES",
                frames=_whole(found.get("NumberOfFrames")) or 1,
                has_pixels="Rows" in found,
                directions=_numbers(found.get("ImageOrientationPatient"), 6),
            )
    except Exception:  # whatever a damaged or hostile file makes of the parser
        return None


# the slice


@_quiet()
def read_slice(path: Path, name: str) -> Slice:
    """One file's pixels and place. The file's name is not shown: it often is a UID, or worse.

    Raises:
        DataError: it is damaged, compressed in a way that cannot be read, in colour, or does not say where it lies.
    """
    with open_regular(path, f"{name}: a slice") as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise DataError(
                f"{name}: a slice of more than {_MOST_BYTES >> 20} MiB; convert it with dcm2niix"
            )
        raw = file.read()
    try:
        found = _parsed(raw, _SLICE, pixels=True)
        for tag in _SLICE:
            found.get(tag)  # pydicom decodes a value when it is first asked for
        syntax = found.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)
        position = _numbers(found.get("ImagePositionPatient"), 3)
        directions = _numbers(found.get("ImageOrientationPatient"), 6)
        spacing = _numbers(found.get("PixelSpacing"), 2)
        rescale = {tag: _numbers(found.get(tag, value), 1) for tag, value in _RESCALE.items()}
        said = _numbers(found.get("SpacingBetweenSlices"), 1)
        frames = _whole(found.get("NumberOfFrames")) or 1
    except Exception:
        raise DataError(
            f"{name}: a slice cannot be read as DICOM; copy the series again from its source"
        ) from None
    if frames > 1:
        raise DataError(
            f"{name}: several frames in one file (enhanced or multi-frame); convert it with dcm2niix"
        )
    for tag, value in (
        ("ImagePositionPatient", position),
        ("ImageOrientationPatient", directions),
        ("PixelSpacing", spacing),
    ):
        if not value:
            raise DataError(
                f"{name}: a slice has no usable {tag}; export it again, with its geometry"
            )
    frame = np.array(directions).reshape(2, 3)
    if np.abs(frame @ frame.T - np.eye(2)).max() > 1e-2:
        raise DataError(
            f"{name}: its ImageOrientationPatient is no pair of perpendicular unit vectors; export it again"
        )
    if not min(spacing) > 0:
        raise DataError(f"{name}: its PixelSpacing {spacing} is not positive; export it again")
    for tag, value in rescale.items():
        if not value or (tag == "RescaleSlope" and value[0] == 0):
            what = f"{tag} {value[0]:g}" if value else f"an empty or impossible {tag}"
            raise DataError(f"{name}: a slice has {what}; export it again, with its values")
    (slope,), (intercept,) = rescale.values()
    where = f"{name}: the slice at {float(np.array(position) @ np.cross(*frame)):.2f} mm"
    stored = _stored(found, syntax, where)
    return Slice(
        pixels=stored.astype(np.float32) * np.float32(slope) + np.float32(intercept),
        position=np.array(position),
        directions=frame / np.linalg.norm(frame, axis=1, keepdims=True),
        spacing=(spacing[0], spacing[1]),
        said=said[0] if said and said[0] > 0 else None,
        whole=slope.is_integer() and intercept.is_integer(),
    )


_RESCALE = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}


def _stored(found: pydicom.Dataset, syntax: str, where: str) -> np.ndarray:
    """The stored values (row, column) of one slice, where they are plain grey numbers; MONOCHROME1 turned around."""
    kind = str(found.get("PhotometricInterpretation", ""))
    if kind not in ("MONOCHROME1", "MONOCHROME2") or found.get("SamplesPerPixel", 1) != 1:
        raise DataError(f"{where} is in colour ({printable(kind[:20])}); leave this series out")
    if "ModalityLUTSequence" in found or "PixelData" not in found:
        what = (
            "values behind a lookup table"
            if "ModalityLUTSequence" in found
            else "no whole-number pixels (PixelData)"
        )
        raise DataError(f"{where} has {what}; convert it with dcm2niix")
    allocated, stored = _whole(found.get("BitsAllocated")), _whole(found.get("BitsStored"))
    rows, columns = _whole(found.get("Rows")), _whole(found.get("Columns"))
    high = _whole(found.get("HighBit", (stored or 0) - 1))
    if (
        allocated not in (8, 16, 32)
        or not stored
        or not 0 < stored <= allocated
        or high != stored - 1
    ):
        raise DataError(
            f"{where} has {stored} bits in {allocated} (highest {high}); export it with 8, 16 or 32 bits"
        )
    if not rows or not columns or min(rows, columns) < 0:
        raise DataError(f"{where} has no usable Rows and Columns; export it again")
    if rows * columns > _MOST_PIXELS:
        raise DataError(
            f"{where} asks for {rows} x {columns} pixels, more than any slice has; export it again"
        )
    sign = found.get("PixelRepresentation", 0)
    if sign not in (0, 1):
        raise DataError(f"{where} has a PixelRepresentation other than 0 and 1; export it again")
    if syntax in _PLAIN:
        pixels, expected = found.PixelData, rows * columns * allocated // 8
        if len(pixels) not in (expected, expected + expected % 2):
            raise DataError(
                f"{where} holds {len(pixels)} bytes of pixels, its header asks for {expected}; copy it again"
            )
        values = np.frombuffer(
            pixels, f"{_PLAIN[uid.UID(syntax)]}u{allocated // 8}", rows * columns
        )
        values = values.reshape(rows, columns).astype(np.int64)
    else:
        values = _decoded(found, uid.UID(syntax), where, (rows, columns))
    values &= (1 << stored) - 1  # bits above the stored ones may hold an overlay
    low = 0
    if sign == 1:
        low = -(1 << (stored - 1))
        values = np.where(values >= -low, values + 2 * low, values)
    elif stored == _WRAPS and _wrapped(values):
        raise DataError(
            f"{where} has values near 0 and near {2**_WRAPS - 1} and none between: negative ones not marked as such "
            "(PixelRepresentation), or a padding value; correct the header or export it again"
        )
    return values if kind == "MONOCHROME2" else 2 * low + (1 << stored) - 1 - values


def _decoded(
    found: pydicom.Dataset, syntax: uid.UID, where: str, shape: tuple[int, int]
) -> np.ndarray:
    """Compressed pixels as they are stored, by a decoder that is installed."""
    called = printable(syntax.name[:60])
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{where} is compressed ({called}), which cannot be read; convert it with dcm2niix"
        ) from None
    if not decoder.is_available:
        by_gdcm = any(each.startswith("gdcm") for each in decoder.missing_dependencies)
        remedy = (
            "pip install 'selfvox[jpeg]', or convert it with dcm2niix"
            if by_gdcm
            else "convert it with dcm2niix"
        )
        raise DataError(
            f"{where} is compressed ({called}), for which no decoder is installed; {remedy}"
        )
    try:
        decoded, _ = decoder.as_array(found, raw=True)
        values: np.ndarray = decoded.reshape(shape).astype(np.int64)
    except Exception:
        raise DataError(
            f"{where} has damaged pixels ({called}); copy it again from its source"
        ) from None
    return values


def _wrapped(values: np.ndarray) -> bool:
    """Whether unsigned values leave the middle half of their range empty, with some on both sides of it."""
    quarter = 2**_WRAPS // 4
    low, high = values < quarter, values >= 3 * quarter
    return bool(low.any() and high.any() and (low | high).all())


# values without trust


def _parsed(raw: bytes, tags: Sequence[str], *, pixels: bool) -> pydicom.Dataset:
    if _DEFLATED in raw[:_HEADER_BYTES]:  # would be inflated whole, to whatever size
        raise ValueError("deflated")
    return pydicom.dcmread(
        BytesIO(raw), force=True, stop_before_pixels=not pixels, specific_tags=list(tags)
    )


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """So many finite numbers, or none."""
    try:
        found = tuple(
            float(each) for each in ([value] if isinstance(value, float | int) else _several(value))
        )
    except (TypeError, ValueError):
        return ()
    return found if len(found) == count and np.isfinite(found).all() else ()


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
