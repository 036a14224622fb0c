"""The header of a DICOM file: what it declares, without its pixels.

Only the tags named here are read. Of a patient's identity nothing leaves this file but a hash that
groups scans.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pydicom

from selfvox.data.formats.dicom_tags import (
    HEADER_BYTES,
    integer_of,
    numbers_of,
    parse,
    quiet,
    values_of,
)
from selfvox.errors import DataError
from selfvox.runs.safe_open import open_regular

_PREAMBLE_BYTES = 128
# how files without a preamble begin: the number of the first group, little endian
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
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
    "ImagePositionPatient",
    "PixelSpacing",
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
    position: tuple[float, ...]  # of the first pixel's centre in mm; () if absent
    spacing: tuple[float, ...]  # mm between rows, between columns; () if absent


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
        with open_regular(path) as file, quiet():
            dataset = parse(file.read(HEADER_BYTES), _HEADER_TAGS, pixels=False)
            patient = _patient(dataset)
            return DicomHeader(
                sop_class=str(dataset.get("SOPClassUID", "")),
                modality=str(dataset.get("Modality", "")),
                image_type=tuple(str(value) for value in values_of(dataset.get("ImageType"))),
                series=str(dataset.get("SeriesInstanceUID", "")),
                study=str(dataset.get("StudyInstanceUID", "")),
                number=integer_of(dataset.get("SeriesNumber")),
                patient=hashlib.sha256(patient).hexdigest() if patient else "",
                burned_in=str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
                frames=integer_of(dataset.get("NumberOfFrames")) or 1,
                has_pixels="Rows" in dataset,
                directions=numbers_of(dataset.get("ImageOrientationPatient"), 6),
                position=numbers_of(dataset.get("ImagePositionPatient"), 3),
                spacing=numbers_of(dataset.get("PixelSpacing"), 2),
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
