"""Intensity of one channel: its kind, its foreground, and the normalisation that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfvox.errors import DataError

Kind = Literal["mri", "ct", "photo"]

# share of the robust range (0.5th to 99.5th percentile) above which a voxel is foreground
FOREGROUND = 0.05
# Hounsfield units; lower values are no tissue but padding beyond the scanner's field of view
AIR = -1024.0
AIR_HU = -500  # only CT has many voxels so far below zero
WHITE = 255  # of 8 bits
MAX_OUTSIDE = 0.5  # of a CT's foreground; of the scans that a window is fitted to, one per cent is


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """How one channel's values are normalised.

    mri: (value - mean) / std over the scan's own foreground; nothing is stored.
    ct: clipped to [lower, upper], then (value - mean) / std; all four are fitted to the data set.
    photo: (value / 255 - mean) / std; both are ImageNet's, so that networks trained on photographs
    can be used.
    """

    kind: Kind
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.kind != "mri" and (self.mean is None or self.std is None or self.std <= 0):
            raise ValueError(f"{self.kind} needs a mean and a positive std")
        if self.kind == "ct" and (
            self.lower is None or self.upper is None or self.lower >= self.upper
        ):
            raise ValueError("ct needs a lower limit below its upper one")


def foreground(channel: np.ndarray, name: str = "image", kind: Kind = "mri") -> np.ndarray:
    """Voxels above 5 % of the channel's robust range (0.5th to 99.5th percentile), bool.

    If that range is empty, the full range counts. In `ct`, the values with which a scanner fills
    the corners (-2000, -3024) count as air: otherwise all air would be foreground.

    Args:
        channel: (*space).
        name: of the channel, for the message.
        kind: of its intensity.

    Raises:
        DataError: the channel is constant.
    """
    if kind == "ct":
        channel = np.maximum(channel, AIR)
    low, high = np.percentile(channel, [0.5, 99.5])
    if not high > low:
        low = channel.min()
        high = channel.max()
    if not high > low:
        raise DataError(f"{name} is constant ({float(low):g}); leave this scan out")
    mask: np.ndarray = channel > low + FOREGROUND * (high - low)
    return mask


def check_values(
    values: np.ndarray, mask: np.ndarray, intensity: Intensity, name: str
) -> list[str]:
    """Notes on one channel's values that are unlike those its intensity was fitted to.

    Args:
        values: of the channel (*space), within the foreground box.
        mask: its foreground.
        intensity: of the channel.
        name: of the scan and the channel, for the message.

    Raises:
        DataError: of `ct`, all values are on one side of the window, so that nothing would be left
            of them; of `photo`, they are not those of 8 bits.
    """
    low = float(values.min())
    high = float(values.max())
    if intensity.kind == "photo":
        # fractions up to 1 are those of programs that divide by 255; a dark picture has 0 and 1
        is_fraction = high <= 1 and bool((values != np.rint(values)).any())
        if low < 0 or high > WHITE or is_fraction:
            raise DataError(
                f"{name}: has values from {low:g} to {high:g}, where a photo has 0 to {WHITE}; "
                "save it with 8 bits, or prepare all of them with --intensity mri"
            )
    if intensity.kind != "ct":
        return []
    assert intensity.lower is not None
    assert intensity.upper is not None
    window = f"the window from {intensity.lower:g} to {intensity.upper:g}"
    if high <= intensity.lower or low >= intensity.upper:
        raise DataError(
            f"{name}: nothing of it is in {window}, its values are from {low:g} to {high:g}; "
            "is it in Hounsfield units?"
        )
    foreground_values = values[mask]
    outside = (foreground_values < intensity.lower) | (foreground_values > intensity.upper)
    share = float(outside.mean()) if outside.size else 0.0
    if share > MAX_OUTSIDE:
        return [
            f"{100 * share:.0f} % of its foreground is outside {window}: is it in Hounsfield units?"
        ]
    if low >= 0 and intensity.lower < AIR_HU:
        return [
            f"its lowest value is {low:g}, where CT has air near -1000: is it in Hounsfield units?"
        ]
    return []


def normalise(values: np.ndarray, mask: np.ndarray, intensity: Intensity) -> np.ndarray:
    """One channel's values, normalised, float32; not finite where they are too large for it.

    Args:
        values: of the channel (*space).
        mask: its foreground; used by `mri` alone.
        intensity: of the channel.
    """
    if intensity.kind == "mri":
        # float64: a sum over millions of voxels
        inside = values[mask].astype(np.float64)
        mean = float(inside.mean())
        # a flat foreground has no spread to divide by
        std = float(inside.std()) or 1.0
    else:
        assert intensity.mean is not None
        assert intensity.std is not None
        mean = intensity.mean
        std = intensity.std
    if intensity.kind == "ct":
        values = np.clip(values, intensity.lower, intensity.upper)
    elif intensity.kind == "photo":
        values = values / 255
    # the caller checks that the result is finite
    with np.errstate(over="ignore"):
        return np.asarray((values - mean) / std, dtype=np.float32)
