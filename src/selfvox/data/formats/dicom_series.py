"""DICOM slices, stacked to a volume by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data.formats.dicom_header import DicomHeader
from selfvox.data.formats.dicom_slice import Slice, read_slice
from selfvox.data.formats.volume import LIMIT_BYTES, LPS_TO_RAS, Volume, spacing_along_ras
from selfvox.errors import DataError

_SAME_PLACE_MM = 0.01  # closer than slices of any scanner
_UNEVEN = 0.05  # of the median gap: headers round positions to a tenth of a millimetre
_TILT = 0.05  # tangent of the angle between the stack and its slices' normal
_SAME_DIRECTION = 1e-3  # of a cosine: a twentieth of a degree
_LARGEST_MM = 1000  # edge of a voxel that a damaged header may declare; no scan has such


def read_series(paths: Sequence[Path], name: str, allow_gap: bool = False) -> Volume:
    """Stack the slices of one series by their positions along the normal.

    Values are rescaled slice by slice. DICOM's left-posterior-superior world becomes
    right-anterior-superior.

    Args:
        paths: the slices' files, in any order.
        name: what messages call the series.
        allow_gap: where slices are missing or uneven, interpolate between the two nearest.

    Returns:
        Voxels (x, y, z): along a row, down a column, along the normal.

    Raises:
        DataError: a slice is damaged, compressed or in colour; slices are missing, doubled or do
            not fit together.
    """
    slices = _read_slices(paths, name)
    _check_one_frame(slices, name)
    first = slices[0]
    normal = np.cross(*first.directions)
    slices, notes = _without_copies(_sorted_along(normal, slices), normal, name)
    if len(slices) < 2:
        raise DataError(f"{name}: a single slice; name the folder with the whole series")
    positions = np.array([slice_.position for slice_ in slices])
    heights = (positions - positions[0]) @ normal
    gap_note = _uneven_gap(heights, float(positions[0] @ normal))
    if gap_note and not allow_gap:
        remedy = "restore it, or have the gap filled by interpolation with --source dicom:allow-gap"
        raise DataError(f"{name}: {gap_note}; {remedy}")
    count = len(slices)
    if gap_note:
        count = 1 + round(float(heights[-1] / np.median(np.diff(heights))))
    # from both ends: the rounding of the positions is shared by all gaps
    step = (positions[-1] - positions[0]) / (count - 1)
    gap_mm = float(step @ normal)
    places = heights / gap_mm
    _check_straight(positions, places, step, normal, first.spacing, name)
    notes += _declared_gap_note(first.declared_gap, gap_mm)
    # DICOM has rows first, which are y
    data = np.stack([slice_.pixels.T for slice_ in slices], axis=-1)
    if gap_note:
        data, interpolated = _fill_gaps(data, places, count, name)
        notes.append(
            f"{gap_note}: {interpolated} of {count} slices are interpolated between their "
            "neighbours, not measured"
        )
    # without loss, in half of the memory
    if all(slice_.whole_numbers for slice_ in slices) and _fits_int16(data):
        data = np.rint(data).astype(np.int16)
    return Volume(data, _affine(first, positions[0], step), None, tuple(notes))


# the numbers of a damaged header may be of any size
@np.errstate(over="ignore", invalid="ignore")
def declared_spacing(headers: Sequence[DicomHeader]) -> tuple[float, ...] | None:
    """Edges of a voxel in mm, along the axes of the nearest RAS+ grid, by the slices' headers.

    None where these have no usable geometry; `read_series` says what is wrong with it.

    Args:
        headers: of the slices of one series, in any order.
    """
    first = headers[0]
    positions = [header.position for header in headers]
    if not (first.directions and first.spacing and all(positions)):
        return None
    along, down = np.array(first.directions).reshape(2, 3)
    normal = np.cross(along, down)
    if not np.allclose([along @ along, down @ down, along @ down], [1, 1, 0], atol=1e-2):
        return None
    heights = np.sort(np.array(positions) @ normal)
    gaps = np.diff(heights)
    gaps = gaps[gaps > _SAME_PLACE_MM]
    # the median: a missing slice hardly moves it
    edges = (first.spacing[1], first.spacing[0], float(np.median(gaps)) if len(gaps) else 0.0)
    if not all(0 < edge < _LARGEST_MM for edge in edges):
        return None
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS[:3, :3] @ (np.stack([along, down, normal], axis=1) * edges)
    return spacing_along_ras(affine)


def _read_slices(paths: Sequence[Path], name: str) -> list[Slice]:
    slices = []
    size = 0
    for path in paths:
        slices.append(read_slice(path, name))
        size += slices[-1].pixels.nbytes
        if size > LIMIT_BYTES:
            raise DataError(
                f"{name}: more than {LIMIT_BYTES / 1e9:g} GB of voxels; "
                "leave slices out, or convert it"
            )
    return slices


def _check_one_frame(slices: Sequence[Slice], name: str) -> None:
    """All slices have the shape, the spacing and the directions of the first."""
    first = slices[0]
    for slice_ in slices:
        for attribute, value, expected in (
            ("shapes (Rows, Columns)", slice_.pixels.shape, first.pixels.shape),
            ("pixel spacings", slice_.spacing, first.spacing),
        ):
            if not np.allclose(value, expected, rtol=1e-4):
                raise DataError(
                    f"{name}: its slices have different {attribute}, {expected} and {value}; "
                    "export it again"
                )
        if np.abs(slice_.directions - first.directions).max() > _SAME_DIRECTION:
            raise DataError(f"{name}: its slices have different orientations; export it again")


def _sorted_along(normal: np.ndarray, slices: Sequence[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda slice_: float(slice_.position @ normal))


def _without_copies(
    slices: Sequence[Slice], normal: np.ndarray, name: str
) -> tuple[list[Slice], list[str]]:
    """The slices, sorted by position, without identical copies, and a note of these."""
    unique: list[Slice] = []
    for slice_ in slices:
        if not unique or not _same_place(slice_, unique[-1], normal):
            unique.append(slice_)
        elif not np.array_equal(slice_.pixels, unique[-1].pixels):
            height = float(slice_.position @ normal)
            raise DataError(
                f"{name}: two different slices at {height:.2f} mm "
                "(several echoes or times in one series?); "
                "keep one of each place, or convert it with dcm2niix"
            )
    copies = len(slices) - len(unique)
    return unique, [f"{copies} identical copies of slices left out"] if copies else []


def _same_place(first: Slice, second: Slice, normal: np.ndarray) -> bool:
    return abs(float((first.position - second.position) @ normal)) < _SAME_PLACE_MM


def _uneven_gap(heights: np.ndarray, lowest: float) -> str:
    """Where the distances of slices differ most; "" where they are even.

    Args:
        heights: of the slices, in mm above the first, increasing.
        lowest: height of the first, in mm.
    """
    gaps = np.diff(heights)
    # the median: a missing slice hardly moves it
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) <= _UNEVEN * usual:
        return ""
    between = f"between {lowest + heights[worst]:.2f} and {lowest + heights[worst + 1]:.2f} mm"
    # halfway between one gap and two
    missing = gaps[worst] > 1.5 * usual
    reason = "a slice is missing" if missing else "slices are unevenly spaced"
    return f"{reason} {between}, {gaps[worst]:.2f} mm apart where others are {usual:.2f}"


def _check_straight(
    positions: np.ndarray,
    places: np.ndarray,
    step: np.ndarray,
    normal: np.ndarray,
    spacing: tuple[float, float],
    name: str,
) -> None:
    """The slices form a straight stack: no gantry tilt, and none is shifted sideways.

    Args:
        positions: (slice, 3), in mm.
        places: of the slices, in steps.
        step: (3,), from a slice to the next, in mm.
        normal: (3,), unit vector.
        spacing: of pixels, in mm.
        name: of the series.
    """
    gap = float(step @ normal)
    sideways = float(np.linalg.norm(step - gap * normal))
    if sideways > _TILT * gap:
        angle = np.degrees(np.arctan2(sideways, gap))
        raise DataError(
            f"{name}: its slices are tilted by {angle:.1f}° (gantry tilt); "
            "straighten it with dcm2niix"
        )
    offsets = positions - (positions[0] + places[:, None] * step)
    shifts = np.linalg.norm(offsets - (offsets @ normal)[:, None] * normal, axis=1)
    # less than a pixel may be rounding
    if shifts.max() > max(spacing):
        height = float(positions[int(shifts.argmax())] @ normal)
        raise DataError(
            f"{name}: the slice at {height:.2f} mm is shifted sideways by {shifts.max():.1f} mm; "
            "export it again"
        )


def _declared_gap_note(declared_mm: float | None, gap_mm: float) -> list[str]:
    if declared_mm is None or abs(declared_mm - gap_mm) <= _UNEVEN * gap_mm:
        return []
    return [
        f"SpacingBetweenSlices says {declared_mm:g} mm, the positions {gap_mm:.4g} mm: "
        "the positions are used"
    ]


def _fill_gaps(
    data: np.ndarray, places: np.ndarray, count: int, name: str
) -> tuple[np.ndarray, int]:
    """Interpolate to slices 0 to `count` - 1.

    Args:
        data: (x, y, slice) float32.
        places: of these slices, in slices of the result; increasing. Slices almost in place are
            copied.
        count: slices of the result.
        name: of the series.

    Returns:
        (x, y, slice) float32, and the number of interpolated slices.

    Raises:
        DataError: more slices are missing than measured.
    """
    # most of the volume would be made up
    if count > 2 * len(places):
        raise DataError(
            f"{name}: {count - len(places)} slices would have to be interpolated "
            f"from {len(places)}; leave it out"
        )
    targets = np.arange(count)
    above = np.clip(np.searchsorted(places, targets), 1, len(places) - 1)
    weight_above = (targets - places[above - 1]) / (places[above] - places[above - 1])
    nearest = np.abs(targets[:, None] - places).argmin(1)
    measured = np.abs(targets - places[nearest]) <= _UNEVEN
    filled = np.empty((*data.shape[:2], count), np.float32)
    for target in targets:
        if measured[target]:
            filled[..., target] = data[..., nearest[target]]
            continue
        low = data[..., above[target] - 1]
        high = data[..., above[target]]
        filled[..., target] = low + np.float32(weight_above[target]) * (high - low)
    return filled, int((~measured).sum())


def _fits_int16(data: np.ndarray) -> bool:
    return bool(data.min() >= -(2**15) and data.max() < 2**15)


def _affine(first: Slice, position: np.ndarray, step: np.ndarray) -> np.ndarray:
    """DICOM PS3.3 C.7.6.2.1.1, from voxel indices (x, y, z) to mm, RAS+."""
    along, down = first.directions
    affine = np.eye(4)
    affine[:3, 0] = along * first.spacing[1]
    affine[:3, 1] = down * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine
