"""One slice of a DICOM series: its position, its directions, and its pixels as rescaled numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import uid

from selfvox.data.formats.dicom_pixels import stored_values
from selfvox.data.formats.dicom_tags import integer_of, numbers_of, parse, quiet
from selfvox.errors import DataError
from selfvox.runs.safe_open import open_regular

_MAX_FILE_BYTES = 2**30  # of one slice
_RESCALE_DEFAULTS = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
# pydicom decodes no others: a damaged tag elsewhere does no harm
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


@quiet()
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
    pixels = stored_values(dataset, fields.syntax, f"{name}: the slice at {height:.2f} mm")
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
        dataset = parse(raw, _SLICE_TAGS, pixels=True)
        for tag in _SLICE_TAGS:
            dataset.get(tag)  # pydicom decodes a value on first access: here a failure is caught
        rescale = {
            tag: numbers_of(dataset.get(tag, default), 1)
            for tag, default in _RESCALE_DEFAULTS.items()
        }
        fields = _SliceFields(
            # DICOM's default transfer syntax (PS3.5, 10.1)
            syntax=dataset.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian),
            frames=integer_of(dataset.get("NumberOfFrames")) or 1,
            position=numbers_of(dataset.get("ImagePositionPatient"), 3),
            directions=numbers_of(dataset.get("ImageOrientationPatient"), 6),
            spacing=numbers_of(dataset.get("PixelSpacing"), 2),
            rescale=rescale,
            declared_gap=numbers_of(dataset.get("SpacingBetweenSlices"), 1),
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
