"""How a scan becomes an array, and how a prediction finds back to the scan's own grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so
from scipy.ndimage import gaussian_filter

from selfvox.data.formats.image import Image
from selfvox.errors import DataError
from selfvox.ops.boxes import bounding_box

Kind = Literal["mri", "ct", "photo"]

FOREGROUND = (
    0.05  # share of the robust range (0.5th to 99.5th percentile) above which a voxel is foreground
)
AIR = (
    -1024.0
)  # Hounsfield units; what lies below is no tissue but filling beyond the scanner's field of view
MARGIN = 1  # voxels kept around the foreground
SAME_GRID = 0.01  # voxels of drift over a whole axis below which nothing is resampled


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """What happens to one channel's values.

    mri: (value - mean) / std over the scan's own foreground, nothing is kept.
    ct: clipped to [lower, upper], then (value - mean) / std; the four are fitted once, over the data set.
    photo: (value / 255 - mean) / std; the two are ImageNet's, so that networks trained on photographs fit.
    """

    kind: Kind
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The way one scan took, in voxels: all that `undo` needs."""

    shape: tuple[int, ...]  # of the scan
    orientation: tuple[
        tuple[int, int], ...
    ]  # per axis of the scan: the canonical axis it becomes, and 1 or -1
    start: tuple[int, ...]  # of the foreground box, canonical axes
    stop: tuple[int, ...]
    step: tuple[float, ...]  # canonical voxels per prepared voxel; both grids share their centre
    prepared: tuple[int, ...]  # shape of the prepared array

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_dict`, lists as JSON gives them."""
        orientation = tuple((int(axis), int(sign)) for axis, sign in values["orientation"])
        ints = {
            name: tuple(int(v) for v in values[name])
            for name in ("shape", "start", "stop", "prepared")
        }
        return cls(orientation=orientation, step=tuple(float(v) for v in values["step"]), **ints)


@dataclass(frozen=True)
class PreparedScan:
    """A scan as networks see it."""

    data: np.ndarray  # float32 (channel, *space)
    spacing_mm: tuple[float, ...]
    affine: np.ndarray  # (4, 4): prepared voxel -> mm in RAS+ world
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Orientation, foreground box, size or spacing, intensity: settings and fitted numbers, no state.

    Volumes are turned to RAS+ by swapping and flipping axes (an oblique scan stays oblique: nothing is interpolated for
    that), cropped to the box around the foreground of any channel, normalised and then resampled, if at all.
    Pictures keep their axes and, whatever their `size`, the shape of their pixels: the box takes in more of the
    picture, and beyond its edge the outermost pixels' values hold. `size` and `spacing_mm` exclude each other; neither
    keeps the scan's own voxels.
    """

    spatial_dims: int
    channel_names: tuple[str, ...]
    intensity: tuple[Intensity, ...]
    size: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`, lists as JSON gives them."""
        return cls(
            spatial_dims=int(values["spatial_dims"]),
            channel_names=tuple(str(name) for name in values["channel_names"]),
            intensity=tuple(Intensity(**each) for each in values["intensity"]),
            size=None if values["size"] is None else tuple(int(v) for v in values["size"]),
            spacing_mm=None
            if values["spacing_mm"] is None
            else tuple(float(v) for v in values["spacing_mm"]),
        )

    def does_as(self, other: Recipe) -> bool:
        """Whether both do the same; channels may be called differently."""
        return dataclasses.replace(self, channel_names=other.channel_names) == other

    def apply(self, image: Image) -> PreparedScan:
        """Prepare one scan.

        Raises:
            DataError: other axes or channels than the recipe's, a constant channel, a single slice, or values too
                large to be normalised.
        """
        self._check(image)
        orientation = canonical_orientation(image)
        data = _orient(np.asarray(image.data, dtype=np.float32), orientation)
        names = [f"{image.name}: channel {name}" for name in self.channel_names]
        masks = [
            foreground(channel, name, intensity.kind)
            for channel, name, intensity in zip(data, names, self.intensity, strict=True)
        ]
        start, stop = _box(masks)
        if self.size is not None and self.spatial_dims == 2:
            start, stop = _widened(start, stop, self.size, data.shape[1:])
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        spacing = tuple(image.spacing_mm[orientation.index(each)] for each in sorted(orientation))
        step, shape = self._grid(np.subtract(stop, start).tolist(), spacing)
        geometry = Geometry(
            shape=image.shape,
            orientation=orientation,
            start=start,
            stop=stop,
            step=step,
            prepared=shape,
        )

        channels = []
        for values, mask, intensity in zip(data, masks, self.intensity, strict=True):
            normalised = normalise(values[box], mask[box], intensity)
            if not np.isfinite(normalised).all():
                raise DataError(
                    f"{image.name}: holds values too large to be normalised; repair the scan"
                )
            channels.append(_shrink_or_grow(normalised, geometry))
        affine = image.affine @ _to_canonical(geometry) @ _to_scan_voxels(geometry)
        return PreparedScan(
            np.stack(channels),
            tuple(float(s * t) for s, t in zip(spacing, step, strict=True)),
            affine,
            geometry,
        )

    def apply_label(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """A label of the scan (*space) on the prepared grid, dtype kept.

        Resampled by linear weights of each class and the largest of them, so no new value can appear.
        """
        return _resample_label(inside_box(label, geometry), geometry, back=False)

    def undo(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """A prediction (*space) on the scan's own grid, dtype kept; 0 outside the foreground box."""
        box = tuple(slice(a, b) for a, b in zip(geometry.start, geometry.stop, strict=True))
        canonical = np.zeros(_canonical_shape(geometry), dtype=label.dtype)
        canonical[box] = _resample_label(label, geometry, back=True)
        back: np.ndarray = _orient_back(canonical[None], geometry.orientation)[0]
        return back

    def undo_probabilities(
        self, probabilities: np.ndarray, geometry: Geometry, background: bool = True
    ) -> np.ndarray:
        """Probabilities (class, *space) on the scan's own grid, float32, linear.

        Outside the box the background, class 0, is sure; without a background, nothing is there.
        """
        box = tuple(slice(a, b) for a, b in zip(geometry.start, geometry.stop, strict=True))
        canonical = np.zeros((len(probabilities), *_canonical_shape(geometry)), dtype=np.float32)
        canonical[0] = float(background)
        for target, values in zip(canonical, probabilities, strict=True):
            target[box] = _resample(
                np.asarray(values, dtype=np.float32), geometry, sitk.sitkLinear, back=True
            )
        return _orient_back(canonical, geometry.orientation)

    def _check(self, image: Image) -> None:
        if image.spatial_dims != self.spatial_dims:
            raise DataError(
                f"{image.name}: has {image.spatial_dims} spatial axes where the data set has {self.spatial_dims}; "
                "keep volumes and pictures in separate folders"
            )
        if len(image.data) != len(self.channel_names):
            raise DataError(
                f"{image.name}: has {len(image.data)} channels where the data set has {len(self.channel_names)} "
                f"({', '.join(self.channel_names)}); leave it out or convert it"
            )
        if min(image.shape) < 2:
            raise DataError(f"{image.name}: is a single slice; give the whole volume")

    def _grid(
        self, box: Sequence[int], spacing: Sequence[float]
    ) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Step (box voxels per prepared voxel) and shape of the prepared grid; step 1 where it is the same grid."""
        if self.size is not None:
            step = tuple(n / m for n, m in zip(box, self.size, strict=True))
            # a stretched picture would tell how it was turned
            step = (max(step),) * 2 if self.spatial_dims == 2 else step
            shape = self.size
        elif self.spacing_mm is not None:
            step = tuple(wanted / has for wanted, has in zip(self.spacing_mm, spacing, strict=True))
            shape = tuple(max(1, round(n / s)) for n, s in zip(box, step, strict=True))
        else:
            return (1.0,) * len(box), tuple(box)
        if shape == tuple(box) and all(
            n * abs(s - 1) < SAME_GRID for n, s in zip(box, step, strict=True)
        ):
            return (1.0,) * len(box), shape
        return step, shape


def foreground(channel: np.ndarray, name: str = "image", kind: Kind = "mri") -> np.ndarray:
    """Voxels above 5 % of the channel's robust range (0.5th to 99.5th percentile; the full range if that is empty).

    In `ct`, what a scanner fills the corners with (-2000, -3024) counts as air: it would make the air a foreground.

    Raises:
        DataError: the channel is constant.
    """
    if kind == "ct":
        channel = np.maximum(channel, AIR)
    low, high = np.percentile(channel, [0.5, 99.5])
    if not high > low:
        low, high = channel.min(), channel.max()
    if not high > low:
        raise DataError(f"{name} is constant ({float(low):g}); leave this scan out")
    mask: np.ndarray = channel > low + FOREGROUND * (high - low)
    return mask


def normalise(values: np.ndarray, mask: np.ndarray, intensity: Intensity) -> np.ndarray:
    """One channel's values, float32; `mask` is its foreground, which only `mri` looks at."""
    if intensity.kind == "mri":
        inside = values[mask].astype(np.float64)
        mean, std = float(inside.mean()), float(inside.std()) or 1.0
    else:
        assert intensity.mean is not None
        assert intensity.std is not None
        mean, std = intensity.mean, intensity.std
    if intensity.kind == "ct":
        values = np.clip(values, intensity.lower, intensity.upper)
    elif intensity.kind == "photo":
        values = values / 255
    with np.errstate(over="ignore"):  # the finite check that follows reports it
        return np.asarray((values - mean) / std, dtype=np.float32)


def canonical_orientation(image: Image) -> tuple[tuple[int, int], ...]:
    """Per axis of the scan: the axis of the nearest RAS+ grid it becomes, and 1, or -1 where it is flipped."""
    if image.spatial_dims == 2:
        return ((0, 1), (1, 1))
    return tuple(
        (int(axis), int(sign)) for axis, sign in nib.orientations.io_orientation(image.affine)
    )


def inside_box(label: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The part of a label of the scan (*space) that is kept: canonical axes, the box around the foreground."""
    box = tuple(slice(a, b) for a, b in zip(geometry.start, geometry.stop, strict=True))
    kept: np.ndarray = _orient(label[None], geometry.orientation)[0][box]
    return kept


def _orient(data: np.ndarray, orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    turned = nib.orientations.apply_orientation(np.moveaxis(data, 0, -1), np.array(orientation))
    return np.ascontiguousarray(np.moveaxis(turned, -1, 0))


def _orient_back(data: np.ndarray, orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    straight = [(axis, 1) for axis in range(len(orientation))]
    inverse = nib.orientations.ornt_transform(np.array(straight), np.array(orientation))
    return _orient(data, [(int(axis), int(sign)) for axis, sign in inverse])


def _canonical_shape(geometry: Geometry) -> tuple[int, ...]:
    shape = [0] * len(geometry.shape)
    for extent, (axis, _) in zip(geometry.shape, geometry.orientation, strict=True):
        shape[axis] = extent
    return tuple(shape)


def _box(masks: Iterable[np.ndarray]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box around the voxels of any mask, with its margin."""
    box = bounding_box(np.logical_or.reduce(list(masks)), MARGIN)
    return tuple(side.start for side in box), tuple(side.stop for side in box)


def _widened(
    start: Sequence[int], stop: Sequence[int], size: Sequence[int], extents: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box made as wide as `size` is beside its height, or as high, as far as the picture reaches."""
    box = [b - a for a, b in zip(start, stop, strict=True)]
    step = max(n / m for n, m in zip(box, size, strict=True))
    first, last = [], []
    for a, n, m, extent in zip(start, box, size, extents, strict=True):
        wanted = min(extent, max(n, int(step * m)))
        first.append(min(max(0, a - (wanted - n) // 2), extent - wanted))
        last.append(first[-1] + wanted)
    return tuple(first), tuple(last)


def _offset(geometry: Geometry) -> list[float]:
    """Where the first prepared voxel lies, in voxels of the box: both grids share their centre."""
    return [
        (stop - start - 1) / 2 - step * (count - 1) / 2
        for start, stop, step, count in zip(
            geometry.start, geometry.stop, geometry.step, geometry.prepared, strict=True
        )
    ]


def _to_canonical(geometry: Geometry) -> np.ndarray:
    """(4, 4): canonical voxel -> voxel of the scan."""
    matrix = np.eye(4)
    spatial = len(geometry.shape)
    matrix[:spatial, :spatial] = 0
    for index, (axis, sign) in enumerate(geometry.orientation):
        matrix[index, axis] = sign
        matrix[index, 3] = 0 if sign == 1 else geometry.shape[index] - 1
    return matrix


def _to_scan_voxels(geometry: Geometry) -> np.ndarray:
    """(4, 4): prepared voxel -> canonical voxel."""
    matrix = np.eye(4)
    for axis, (start, step, offset) in enumerate(
        zip(geometry.start, geometry.step, _offset(geometry), strict=True)
    ):
        matrix[axis, axis] = step
        matrix[axis, 3] = start + offset
    return matrix


def _is_same_grid(geometry: Geometry) -> bool:
    box = tuple(b - a for a, b in zip(geometry.start, geometry.stop, strict=True))
    return box == geometry.prepared and all(step == 1 for step in geometry.step)


def _shrink_or_grow(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An image by cubic B-spline, kept within its own range, since a cubic overshoots at edges.

    Axes that shrink are smoothed first, else fine detail would come back as noise; sigma as in Cardoso et al. 2015.
    """
    if _is_same_grid(geometry):
        return values
    low, high = values.min(), values.max()
    sigma = [0.4247 * np.sqrt(max(step**2 - 1, 0)) for step in geometry.step]
    smooth = gaussian_filter(values, sigma, mode="nearest")
    # a cubic needs four samples along every axis
    interpolator = sitk.sitkBSpline if min(values.shape) >= 4 else sitk.sitkLinear
    return np.asarray(np.clip(_resample(smooth, geometry, interpolator, back=False), low, high))


def _resample(
    values: np.ndarray, geometry: Geometry, interpolator: int, *, back: bool
) -> np.ndarray:
    """From the box to the prepared grid, or back; beyond the outermost voxels their value holds."""
    if _is_same_grid(geometry):
        return values
    box = [b - a for a, b in zip(geometry.start, geometry.stop, strict=True)]
    # SimpleITK counts axes the other way round
    step, offset = list(geometry.step)[::-1], _offset(geometry)[::-1]
    unit, zero = [1.0] * len(step), [0.0] * len(step)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.SetSpacing(step if back else unit)
    image.SetOrigin(offset if back else zero)
    target = sitk.ResampleImageFilter()
    target.SetSize((box if back else list(geometry.prepared))[::-1])
    target.SetOutputSpacing(unit if back else step)
    target.SetOutputOrigin(zero if back else offset)
    target.SetInterpolator(interpolator)
    target.SetUseNearestNeighborExtrapolator(True)
    result: np.ndarray = sitk.GetArrayFromImage(target.Execute(image))
    return result


def _resample_label(label: np.ndarray, geometry: Geometry, *, back: bool) -> np.ndarray:
    if _is_same_grid(geometry):
        return label
    best: np.ndarray | None = None
    for value in np.unique(label):
        weight = _resample(
            (label == value).astype(np.float32), geometry, sitk.sitkLinear, back=back
        )
        if best is None:
            best, result = weight, np.full(weight.shape, value, dtype=label.dtype)
        else:
            result[weight > best] = value
            best = np.maximum(best, weight)
    return result
