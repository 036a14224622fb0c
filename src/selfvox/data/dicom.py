"""DICOM slices: looked at one by one, and stacked to a volume by their positions.

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

from selfvox.data.naming import shown
from selfvox.data.nifti import LIMIT_BYTES, Volume
from selfvox.data.regular import open_regular
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
_SAME_MM = 0.01
_UNEVEN = 0.05  # of the median gap: headers round positions to a tenth of a millimetre
_TILT = 0.05  # tangent of the angle between the stack and its slices' normal
_SAME_DIRECTION = 1e-3

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


class About(NamedTuple):
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


class _Slice(NamedTuple):
    pixels: np.ndarray  # (row, column), float32, rescaled
    position: np.ndarray  # of the first pixel's centre, mm, left-posterior-superior
    directions: np.ndarray  # (2, 3): along a row, along a column
    spacing: tuple[float, float]  # mm between rows, between columns
    said: float | None  # SpacingBetweenSlices
    whole: bool  # slope and intercept are whole numbers


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with a preamble or without; never raises."""
    try:
        with open_regular(path) as file:
            start = file.read(_PREAMBLE + 4)
    except (DataError, OSError):
        return False
    explicit, implicit = start[4:6].isalpha() and start[4:6].isupper(), start[6:8] == b"\0\0"
    return start[_PREAMBLE:] == b"DICM" or (start[:2] in _FIRST_GROUPS and (explicit or implicit))


def look(path: Path) -> About | None:
    """What a file says of itself; None where it cannot be read as DICOM."""
    try:
        with open_regular(path) as file, _quiet():
            found = _parsed(file.read(_HEADER_BYTES), _ABOUT, pixels=False)
            # bytes as they stand: no character set is trusted, and nothing is decoded
            told = [each.value for tag in ("PatientID", "PatientName") if (each := found.get_item(tag))]
            patient = next((bytes(value).strip(b" \0") for value in told if value), b"")
            return About(
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


def read(paths: Sequence[Path], name: str, allow_gap: bool = False) -> Volume:
    """Stack the slices of one series by their positions along the normal; values rescaled slice by slice.

    Args:
        paths: the slices' files, in any order.
        name: what the series is called in messages.
        allow_gap: where slices are missing or uneven, interpolate between the two nearest instead of refusing.

    Returns:
        Voxels (x, y, z): along a row, down a column, along the normal; DICOM's left-posterior-superior world becomes
        right-anterior-superior.

    Raises:
        DataError: a slice is damaged, compressed or in colour; slices are missing, doubled or do not fit together.
    """
    slices = []
    size = 0
    for path in paths:
        with _quiet():
            slices.append(_slice(path, name))
        size += slices[-1].pixels.nbytes
        if size > LIMIT_BYTES:
            raise DataError(f"{name}: more than {LIMIT_BYTES / 1e9:g} GB of voxels; leave slices out, or convert it")
    first = slices[0]
    for each in slices:
        for what, one, other in (
            ("shapes (Rows, Columns)", each.pixels.shape, first.pixels.shape),
            ("pixel spacings", each.spacing, first.spacing),
        ):
            if not np.allclose(one, other, rtol=1e-4):
                raise DataError(f"{name}: its slices have different {what}, {other} and {one}; export it again")
        if np.abs(each.directions - first.directions).max() > _SAME_DIRECTION:
            raise DataError(f"{name}: its slices are turned against each other; export it again")
    along, down = first.directions
    normal = np.cross(along, down)
    slices.sort(key=lambda each: float(each.position @ normal))
    slices, notes = _single(slices, normal, name)
    if len(slices) < 2:
        raise DataError(f"{name}: a single slice; name the folder that holds the whole series")
    places = np.array([each.position for each in slices])
    heights = (places - places[0]) @ normal
    uneven = _uneven(heights, float(places[0] @ normal))
    if uneven and not allow_gap:
        remedy = "restore it, or have the gap filled by interpolation with --source dicom:allow-gap"
        raise DataError(f"{name}: {uneven}; {remedy}")
    count = 1 + round(float(heights[-1] / np.median(np.diff(heights)))) if uneven else len(slices)
    step = (places[-1] - places[0]) / (count - 1)
    gap = float(step @ normal)
    _check_straight(places, heights / gap, step, normal, first.spacing, name)
    if first.said is not None and abs(first.said - gap) > _UNEVEN * gap:
        notes.append(f"SpacingBetweenSlices says {first.said:g} mm, the positions {gap:.4g} mm: the positions are used")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * first.spacing[1], down * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, places[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    data = np.stack([each.pixels.T for each in slices], axis=-1)
    if uneven:
        data, made = _filled(data, heights / gap, count, name)
        notes.append(f"{uneven}: {made} of {count} slices are no scan's but interpolated between their neighbours")
    if all(each.whole for each in slices) and data.min() >= -(2**15) and data.max() < 2**15:
        data = np.rint(data).astype(np.int16)
    return Volume(data, affine, None, tuple(notes))


# one slice


def _slice(path: Path, name: str) -> _Slice:
    """One file's pixels and place. The file's name is not shown: it often is a UID, or worse."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise DataError(f"{name}: a slice of more than {_MOST_BYTES >> 20} MiB; convert it with dcm2niix")
        raw = file.read()
    try:
        found = _parsed(raw, _SLICE, pixels=True)
        syntax = found.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)
        position = _numbers(found.get("ImagePositionPatient"), 3)
        directions = _numbers(found.get("ImageOrientationPatient"), 6)
        spacing = _numbers(found.get("PixelSpacing"), 2)
        slope, intercept = (float(found.get(tag, value)) for tag, value in _RESCALE.items())
        said = _numbers(found.get("SpacingBetweenSlices"), 1)
        frames = _whole(found.get("NumberOfFrames")) or 1
    except Exception:
        raise DataError(f"{name}: a slice cannot be read as DICOM; copy the series again from its source") from None
    if frames > 1:
        raise DataError(f"{name}: several frames in one file (enhanced or multi-frame); convert it with dcm2niix")
    for tag, value in (
        ("ImagePositionPatient", position),
        ("ImageOrientationPatient", directions),
        ("PixelSpacing", spacing),
    ):
        if not value:
            raise DataError(f"{name}: a slice has no usable {tag}; export it again, with its geometry")
    frame = np.array(directions).reshape(2, 3)
    if np.abs(frame @ frame.T - np.eye(2)).max() > 1e-2:
        raise DataError(
            f"{name}: its ImageOrientationPatient is no pair of perpendicular unit vectors; export it again"
        )
    if not min(spacing) > 0:
        raise DataError(f"{name}: its PixelSpacing {spacing} is not positive; export it again")
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise DataError(f"{name}: rescale slope {slope:g} and intercept {intercept:g} cannot be; export it again")
    where = f"{name}: the slice at {float(np.array(position) @ np.cross(*frame)):.2f} mm"
    stored = _stored(found, syntax, where)
    return _Slice(
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
        raise DataError(f"{where} is in colour ({shown(kind[:20])}); leave this series out")
    if "ModalityLUTSequence" in found or "PixelData" not in found:
        what = (
            "values behind a lookup table" if "ModalityLUTSequence" in found else "no whole-number pixels (PixelData)"
        )
        raise DataError(f"{where} has {what}; convert it with dcm2niix")
    allocated, stored = _whole(found.get("BitsAllocated")), _whole(found.get("BitsStored"))
    rows, columns = _whole(found.get("Rows")), _whole(found.get("Columns"))
    high = _whole(found.get("HighBit", (stored or 0) - 1))
    if allocated not in (8, 16, 32) or not stored or not 0 < stored <= allocated or high != stored - 1:
        raise DataError(f"{where} has {stored} bits in {allocated} (highest {high}); export it with 8, 16 or 32 bits")
    if not rows or not columns or min(rows, columns) < 0:
        raise DataError(f"{where} has no usable Rows and Columns; export it again")
    if rows * columns > _MOST_PIXELS:
        raise DataError(f"{where} asks for {rows} x {columns} pixels, more than any slice has; export it again")
    sign = found.get("PixelRepresentation", 0)
    if sign not in (0, 1):
        raise DataError(f"{where} has a PixelRepresentation other than 0 and 1; export it again")
    if syntax in _PLAIN:
        pixels, expected = found.PixelData, rows * columns * allocated // 8
        if len(pixels) not in (expected, expected + expected % 2):
            raise DataError(
                f"{where} holds {len(pixels)} bytes of pixels, its header asks for {expected}; copy it again"
            )
        values = np.frombuffer(pixels, f"{_PLAIN[uid.UID(syntax)]}u{allocated // 8}", rows * columns)
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


def _decoded(found: pydicom.Dataset, syntax: uid.UID, where: str, shape: tuple[int, int]) -> np.ndarray:
    """Compressed pixels as they are stored, by a decoder that is installed."""
    called = shown(syntax.name[:60])
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"{where} is compressed ({called}), which cannot be read; convert it with dcm2niix") from None
    if not decoder.is_available:
        by_gdcm = any(each.startswith("gdcm") for each in decoder.missing_dependencies)
        remedy = "pip install 'selfvox[jpeg]', or convert it with dcm2niix" if by_gdcm else "convert it with dcm2niix"
        raise DataError(f"{where} is compressed ({called}), for which no decoder is installed; {remedy}")
    try:
        decoded, _ = decoder.as_array(found, raw=True)
        values: np.ndarray = decoded.reshape(shape).astype(np.int64)
    except Exception:
        raise DataError(f"{where} has damaged pixels ({called}); copy it again from its source") from None
    return values


def _wrapped(values: np.ndarray) -> bool:
    """Whether unsigned values leave the middle half of their range empty, with some on both sides of it."""
    quarter = 2**_WRAPS // 4
    low, high = values < quarter, values >= 3 * quarter
    return bool(low.any() and high.any() and (low | high).all())


# the stack


def _single(slices: list[_Slice], normal: np.ndarray, name: str) -> tuple[list[_Slice], list[str]]:
    """The slices, sorted by place, without identical copies."""
    kept: list[_Slice] = []
    for each in slices:
        if kept and abs(float((each.position - kept[-1].position) @ normal)) < _SAME_MM:
            if not np.array_equal(each.pixels, kept[-1].pixels):
                place = float(each.position @ normal)
                raise DataError(
                    f"{name}: two different slices at {place:.2f} mm (several echoes or times in one series?); "
                    "keep one of each place, or convert it with dcm2niix"
                )
        else:
            kept.append(each)
    copies = len(slices) - len(kept)
    return kept, [f"{copies} identical copies of slices left out"] if copies else []


def _uneven(heights: np.ndarray, lowest: float) -> str:
    """Where the slices' distances differ most, mm; "" where they are even. `heights` are counted from `lowest` on."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) <= _UNEVEN * usual:
        return ""
    between = f"between {lowest + heights[worst]:.2f} and {lowest + heights[worst + 1]:.2f} mm"
    what = "a slice is missing" if gaps[worst] > 1.5 * usual else "slices are unevenly spaced"
    return f"{what} {between}, {gaps[worst]:.2f} mm apart where others are {usual:.2f}"


def _filled(data: np.ndarray, at: np.ndarray, count: int, name: str) -> tuple[np.ndarray, int]:
    """The values (x, y, slice) at slices 0 to `count` - 1, and how many of these had to be interpolated.

    Args:
        data: (x, y, slice) float32.
        at: where these slices lie, in slices of the result; increasing. Those almost in place are left as they are.
        count: slices of the result.
        name: of the series.

    Raises:
        DataError: more slices are missing than there are.
    """
    if count > 2 * len(at):
        raise DataError(f"{name}: {count - len(at)} slices would have to be made up from {len(at)}; leave it out")
    places = np.arange(count)
    above = np.clip(np.searchsorted(at, places), 1, len(at) - 1)
    share = (places - at[above - 1]) / (at[above] - at[above - 1])
    nearest = np.abs(places[:, None] - at).argmin(1)
    there = np.abs(places - at[nearest]) <= _UNEVEN
    filled = np.empty((*data.shape[:2], count), np.float32)
    for place in places:
        low, high = data[..., above[place] - 1], data[..., above[place]]
        mixed = low + np.float32(share[place]) * (high - low)
        filled[..., place] = data[..., nearest[place]] if there[place] else mixed
    return filled, int((~there).sum())


def _check_straight(
    places: np.ndarray,
    at: np.ndarray,
    step: np.ndarray,
    normal: np.ndarray,
    spacing: tuple[float, float],
    name: str,
) -> None:
    """The slices, which lie `at` so many steps, lie above each other: no gantry tilt, none moved sideways."""
    gap = float(step @ normal)
    sideways = float(np.linalg.norm(step - gap * normal))
    if sideways > _TILT * gap:
        angle = np.degrees(np.arctan2(sideways, gap))
        raise DataError(f"{name}: its slices are tilted by {angle:.1f}° (gantry tilt); straighten it with dcm2niix")
    line = places[0] + at[:, None] * step
    off = np.linalg.norm((places - line) - ((places - line) @ normal)[:, None] * normal, axis=1)
    if off.max() > max(spacing):
        where = float(places[int(off.argmax())] @ normal)
        raise DataError(
            f"{name}: the slice at {where:.2f} mm lies {off.max():.1f} mm beside the others; export it again"
        )


# values without trust


def _parsed(raw: bytes, tags: Sequence[str], *, pixels: bool) -> pydicom.Dataset:
    if _DEFLATED in raw[:_HEADER_BYTES]:  # would be inflated whole, to whatever size
        raise ValueError("deflated")
    return pydicom.dcmread(BytesIO(raw), force=True, stop_before_pixels=not pixels, specific_tags=list(tags))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, to the terminal or to a log: they quote values, and a value may be a name."""
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        yield


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """So many finite numbers, or none."""
    try:
        found = tuple(float(each) for each in ([value] if isinstance(value, float | int) else _several(value)))
    except (TypeError, ValueError):
        return ()
    return found if len(found) == count and np.isfinite(found).all() else ()


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
