"""DICOM slices, stacked to a volume by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data.formats.dicom_file import Slice, read_slice
from selfvox.data.formats.nifti import LIMIT_BYTES, Volume
from selfvox.errors import DataError

_SAME_MM = 0.01
_UNEVEN = 0.05  # of the median gap: headers round positions to a tenth of a millimetre
_TILT = 0.05  # tangent of the angle between the stack and its slices' normal
_SAME_DIRECTION = 1e-3


def read_series(paths: Sequence[Path], name: str, allow_gap: bool = False) -> Volume:
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
        slices.append(read_slice(path, name))
        size += slices[-1].pixels.nbytes
        if size > LIMIT_BYTES:
            raise DataError(
                f"{name}: more than {LIMIT_BYTES / 1e9:g} GB of voxels; leave slices out, or convert it"
            )
    first = slices[0]
    for each in slices:
        for what, one, other in (
            ("shapes (Rows, Columns)", each.pixels.shape, first.pixels.shape),
            ("pixel spacings", each.spacing, first.spacing),
        ):
            if not np.allclose(one, other, rtol=1e-4):
                raise DataError(
                    f"{name}: its slices have different {what}, {other} and {one}; export it again"
                )
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
        notes.append(
            f"SpacingBetweenSlices says {first.said:g} mm, the positions {gap:.4g} mm: the positions are used"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * first.spacing[1], down * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, places[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    data = np.stack([each.pixels.T for each in slices], axis=-1)
    if uneven:
        data, made = _filled(data, heights / gap, count, name)
        notes.append(
            f"{uneven}: {made} of {count} slices are no scan's but interpolated between their neighbours"
        )
    if all(each.whole for each in slices) and data.min() >= -(2**15) and data.max() < 2**15:
        data = np.rint(data).astype(np.int16)
    return Volume(data, affine, None, tuple(notes))


def _single(slices: list[Slice], normal: np.ndarray, name: str) -> tuple[list[Slice], list[str]]:
    """The slices, sorted by place, without identical copies."""
    kept: list[Slice] = []
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
        raise DataError(
            f"{name}: {count - len(at)} slices would have to be made up from {len(at)}; leave it out"
        )
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
        raise DataError(
            f"{name}: its slices are tilted by {angle:.1f}° (gantry tilt); straighten it with dcm2niix"
        )
    line = places[0] + at[:, None] * step
    off = np.linalg.norm((places - line) - ((places - line) @ normal)[:, None] * normal, axis=1)
    if off.max() > max(spacing):
        where = float(places[int(off.argmax())] @ normal)
        raise DataError(
            f"{name}: the slice at {where:.2f} mm lies {off.max():.1f} mm beside the others; export it again"
        )
