"""A prepared scan in numbers: its spacing, extent, values and detail, to compare it with others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfvox.data.formats.image import Image
from selfvox.data.preparation.geometry import Geometry, canonical_orientation, canonical_spacing

# of the scan's own values
BEFORE = (0.0, 1.0, 50.0, 99.0, 100.0)
# percentiles of the normalised values in the body: means between them are compared, since a single
# percentile jumps from one tissue to the next where their shares differ a little
AFTER = (1.0, 10.0, 30.0, 50.0, 70.0, 90.0, 99.0)
# share of the robust range (0.5th to 99.5th percentile) above which a voxel counts as body: higher
# than for the foreground, of which noise in the air may be a part
_BODY = 0.2
# voxels of a channel that are looked at, on a regular lattice: percentiles of so many are exact
# to a hundredth of their spread
_VOXELS = 500_000
_LEAST_DETAIL = 1e-4  # of a flat scan, so that its logarithm exists


@dataclass(frozen=True, kw_only=True)
class ChannelProfile:
    """One channel of a scan, before and after the recipe."""

    before: tuple[float, ...]  # percentiles `BEFORE` of the scan's own values
    after: tuple[float, ...]  # means of the normalised body values between percentiles `AFTER`
    share: float  # of the body in the prepared scan, 0 to 1
    # mean difference of neighbouring voxels in the body along each axis, normalised values
    detail: tuple[float, ...]

    @property
    def below_zero(self) -> float:
        """The share of the scan's own range of values that is below 0, without the extremes.

        About 0.9 in CT with air, 0 in MR and PET, whatever their scale.
        """
        _, low, _, high, _ = self.before
        if low >= 0:
            return 0.0
        return -low / (high - low) if high > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class ScanProfile:
    """A scan in numbers."""

    spacing_mm: tuple[float, ...]  # of the scan itself, canonical axes
    # edges of the box around the foreground, canonical axes: mm, or prepared pixels of a picture
    extent: tuple[float, ...]
    channels: tuple[ChannelProfile, ...]
    modality: str | None = None  # such as MR, where the scan says so

    @property
    def spatial_dims(self) -> int:
        """3 for a volume, 2 for a picture."""
        return len(self.extent)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScanProfile:
        """The inverse of `to_dict`, lists as JSON gives them."""
        channels = tuple(
            ChannelProfile(
                before=_as_floats(channel["before"]),
                after=_as_floats(channel["after"]),
                share=float(channel["share"]),
                detail=_as_floats(channel["detail"]),
            )
            for channel in values["channels"]
        )
        modality = values["modality"]
        return cls(
            spacing_mm=_as_floats(values["spacing_mm"]),
            extent=_as_floats(values["extent"]),
            channels=channels,
            modality=None if modality is None else str(modality),
        )


def measure_profile(
    image: Image, prepared: np.ndarray, geometry: Geometry, modality: str | None = None
) -> ScanProfile:
    """Measure a scan before and after the recipe.

    Args:
        image: the scan as it was read.
        prepared: the same as the recipe prepared it (channel, *space).
        geometry: how the one became the other.
        modality: where it is known.
    """
    orientation = canonical_orientation(image)
    spacing_mm = canonical_spacing(image, orientation)
    # pixels have no size in mm, and networks see the prepared ones
    extent: tuple[float, ...] = geometry.prepared_shape
    if image.spatial_dims == 3:
        extent = tuple(edge * mm for edge, mm in zip(geometry.box_shape, spacing_mm, strict=True))
    return ScanProfile(
        spacing_mm=_rounded(spacing_mm),
        extent=_rounded(extent),
        channels=tuple(
            _measure_channel(values, normalised)
            for values, normalised in zip(image.data, prepared, strict=True)
        ),
        modality=modality,
    )


def _measure_channel(values: np.ndarray, normalised: np.ndarray) -> ChannelProfile:
    """The profile of one channel, from the scan's own values and the normalised ones (*space)."""
    before = np.percentile(values[_lattice(values.shape)], BEFORE)
    # the lattice may miss the extremes
    before[0] = values.min()
    before[-1] = values.max()
    lattice = _lattice(normalised.shape)
    sample = normalised[lattice]
    low, high = np.percentile(sample, [0.5, 99.5])
    limit = low + _BODY * (high - low)
    inside = sample > limit
    if not inside.any():
        inside = np.ones_like(inside)
    return ChannelProfile(
        before=_rounded(before),
        after=_rounded(_means_between(sample[inside], AFTER)),
        share=_rounded([inside.mean()])[0],
        detail=_rounded(
            [_detail(normalised, lattice, axis, limit) for axis in range(normalised.ndim)]
        ),
    )


def _means_between(values: np.ndarray, percentiles: tuple[float, ...]) -> list[float]:
    """Means of the values between each percentile and the next."""
    ordered = np.sort(values, axis=None)
    places = [round(percentile / 100 * (len(ordered) - 1)) for percentile in percentiles]
    return [
        float(ordered[first : last + 1].mean(dtype=np.float64))
        for first, last in itertools.pairwise(places)
    ]


def _detail(values: np.ndarray, lattice: tuple[slice, ...], axis: int, limit: float) -> float:
    """Mean difference between voxels of the lattice and their next neighbours along an axis."""
    here = list(lattice)
    step = lattice[axis].step
    # the last voxel has no next one
    here[axis] = slice(0, values.shape[axis] - 1, step)
    beyond = list(lattice)
    beyond[axis] = slice(1, None, step)
    first = values[tuple(here)]
    second = values[tuple(beyond)]
    inside = (first > limit) & (second > limit)
    if not inside.any():
        return _LEAST_DETAIL
    difference = np.abs(first[inside] - second[inside]).mean(dtype=np.float64)
    return max(float(difference), _LEAST_DETAIL)


def _lattice(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Every k-th voxel along each axis, about `_VOXELS` in all."""
    step = max(1, round((np.prod(shape) / _VOXELS) ** (1 / len(shape))))
    return (slice(0, None, step),) * len(shape)


def _rounded(values: Any) -> tuple[float, ...]:
    """Five digits, which are more than any comparison needs; manifests stay short."""
    return tuple(float(f"{value:.5g}") for value in values)


def _as_floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
