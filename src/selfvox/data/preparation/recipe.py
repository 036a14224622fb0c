"""Recipe: how a scan becomes an array, and how a prediction returns to the scan's own grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from selfvox.data.formats.image import Image
from selfvox.data.formats.volume import LIMIT_BYTES
from selfvox.data.preparation.geometry import (
    Geometry,
    canonical_orientation,
    canonical_spacing,
    crop_to_box,
    orient,
    orient_back,
    place_in_scan,
    prepared_affine,
)
from selfvox.data.preparation.normalise import Intensity, check_values, foreground, normalise
from selfvox.data.preparation.resample import (
    resample_image,
    resample_label,
    resample_probabilities_back,
)
from selfvox.errors import DataError, WeightsError
from selfvox.ops.boxes import bounding_box
from selfvox.runs.card import Card
from selfvox.runs.typed_json import parse

MARGIN = 1  # voxels kept around the foreground
MIN_VOXELS = 2  # along each axis of a scan that is resampled to a spacing
SAME_GRID = 0.01  # voxels of drift over a whole axis below which nothing is resampled


@dataclass(frozen=True)
class PreparedScan:
    """A scan as networks see it."""

    data: np.ndarray  # float32 (channel, *space)
    spacing_mm: tuple[float, ...]
    affine: np.ndarray  # (4, 4): prepared voxel -> mm in RAS+ world
    geometry: Geometry
    notes: tuple[str, ...] = ()  # on values that the recipe was not made for


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Orientation, foreground box, size or spacing, and intensity: settings and fitted numbers.

    Volumes are turned to RAS+ by swapping and flipping axes (an oblique scan stays oblique, nothing
    is interpolated), cropped to the box around the foreground of any channel, normalised and then
    resampled, if a size or a spacing is given.
    Pictures keep their axes and, whatever their `size`, the aspect ratio of their pixels: the box
    grows within the picture, and beyond the picture its outermost pixels are repeated.
    `size` and `spacing_mm` exclude each other; without them the scan's own voxels are kept.
    Along an axis on which a scan's spacing differs from `spacing_mm` by at most the share
    `keep_within`, its own voxels are kept too: interpolation would blur them for little.
    """

    spatial_dims: Annotated[int, Field(ge=2, le=3)]
    channel_names: Annotated[tuple[str, ...], Field(min_length=1)]
    intensity: tuple[Intensity, ...]
    size: tuple[Annotated[int, Field(ge=1, lt=2**16)], ...] | None = None
    spacing_mm: tuple[Annotated[float, Field(gt=0, le=1e4)], ...] | None = None
    keep_within: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if len(self.intensity) != len(self.channel_names):
            raise ValueError("needs one intensity per channel")
        for name, grid in (("size", self.size), ("spacing_mm", self.spacing_mm)):
            if grid is not None and len(grid) != self.spatial_dims:
                raise ValueError(f"{name} has {len(grid)} numbers for {self.spatial_dims} axes")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`, lists as JSON gives them.

        Raises:
            DataError: these are not the values of a recipe.
        """
        # absent, a key would get its default
        if missing := {field.name for field in dataclasses.fields(cls)} - values.keys():
            raise DataError(f"recipe: damaged (has no '{min(missing)}')")
        recipe: Recipe = parse(cls, values, "recipe")
        return recipe

    def is_equivalent(self, recipe: Recipe) -> bool:
        """Whether both prepare a scan in the same way; the names of channels may differ.

        Median spacings of two data sets may differ too, within what each recipe leaves as it is.
        """
        alike = dataclasses.replace(self, channel_names=recipe.channel_names)
        if is_near(self.spacing_mm, recipe.spacing_mm, min(self.keep_within, recipe.keep_within)):
            alike = dataclasses.replace(alike, spacing_mm=recipe.spacing_mm)
        return alike == recipe

    def with_grid_of(self, recipe: Recipe) -> Recipe:
        """These channels and intensities, on the grid of another recipe."""
        return dataclasses.replace(
            self,
            size=recipe.size,
            spacing_mm=recipe.spacing_mm,
            keep_within=recipe.keep_within,
        )

    def apply(self, image: Image) -> PreparedScan:
        """Prepare one scan.

        Raises:
            DataError: other axes or channels than the recipe's, a constant channel, a single slice,
                values that the recipe cannot be for, or a prepared grid without or with far too
                many voxels.
        """
        self._check(image)
        orientation = canonical_orientation(image)
        data = orient(np.asarray(image.data, dtype=np.float32), orientation)
        masks = self._foreground_masks(data, image.name)
        box = self._choose_box(masks)
        spacing = canonical_spacing(image, orientation)
        step, shape = self._choose_grid([side.stop - side.start for side in box], spacing)
        self._check_grid(shape, spacing, image.name)
        geometry = Geometry(
            shape=image.shape,
            orientation=orientation,
            start=tuple(side.start for side in box),
            stop=tuple(side.stop for side in box),
            step=step,
            prepared_shape=shape,
        )

        channels = []
        notes: list[str] = []
        for channel, values, mask, intensity in zip(
            self.channel_names, data, masks, self.intensity, strict=True
        ):
            name = f"{image.name}: channel {channel}" if len(data) > 1 else image.name
            notes += check_values(values[box], mask[box], intensity, name)
            normalised = normalise(values[box], mask[box], intensity)
            if not np.isfinite(normalised).all():
                raise DataError(
                    f"{image.name}: has values too large to be normalised; repair the scan"
                )
            channels.append(resample_image(normalised, geometry))
        return PreparedScan(
            data=np.stack(channels),
            spacing_mm=tuple(float(mm * count) for mm, count in zip(spacing, step, strict=True)),
            affine=prepared_affine(image.affine, geometry),
            geometry=geometry,
            notes=tuple(notes),
        )

    def apply_label(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """A label of the scan (*space) on the prepared grid, dtype kept; no new value appears."""
        return resample_label(crop_to_box(label, geometry), geometry, back=False)

    def undo(self, label: np.ndarray, geometry: Geometry) -> np.ndarray:
        """A prediction (*space) on the scan's own grid, dtype kept; 0 outside the box."""
        return place_in_scan(resample_label(label, geometry, back=True), geometry)

    def undo_probabilities(
        self, probabilities: np.ndarray, geometry: Geometry, background: bool = True
    ) -> np.ndarray:
        """Probabilities (class, *space) on the scan's own grid, float32, linear.

        Args:
            probabilities: on the prepared grid.
            geometry: of the scan.
            background: class 0 is the background, which has probability 1 outside the box; else
                all classes have 0 there.
        """
        shape = (len(probabilities), *geometry.canonical_shape)
        canonical = np.zeros(shape, dtype=np.float32)
        canonical[0] = float(background)
        for target, values in zip(canonical, probabilities, strict=True):
            target[geometry.box] = resample_probabilities_back(values, geometry)
        return orient_back(canonical, geometry.orientation)

    def _check(self, image: Image) -> None:
        if image.spatial_dims != self.spatial_dims:
            raise DataError(
                f"{image.name}: has {image.spatial_dims} spatial axes where the data set has "
                f"{self.spatial_dims}; keep volumes and pictures in separate folders"
            )
        if len(image.data) != len(self.channel_names):
            raise DataError(
                f"{image.name}: has {len(image.data)} channels where the data set has "
                f"{len(self.channel_names)} ({', '.join(self.channel_names)}); leave it out or "
                "convert it"
            )
        if min(image.shape) < 2:
            raise DataError(f"{image.name}: is a single slice; give the whole volume")

    def _check_grid(self, shape: Sequence[int], spacing_mm: Sequence[float], name: str) -> None:
        """Refuse a spacing that leaves next to nothing of a scan, or makes it far too large."""
        if self.spacing_mm is None:
            return
        size = 4 * len(self.channel_names) * math.prod(shape)  # in float32
        if min(shape) >= MIN_VOXELS and size <= LIMIT_BYTES:
            return
        grid = " x ".join(map(str, shape))
        raise DataError(
            f"{name}: would be {grid} voxels at {_joined(self.spacing_mm)} mm, since its own are "
            f"of {_joined(spacing_mm)} mm; correct the unit in its header, or take another "
            "--spacing"
        )

    def _foreground_masks(self, data: np.ndarray, name: str) -> list[np.ndarray]:
        """The foreground of each channel."""
        channels = zip(data, self.channel_names, self.intensity, strict=True)
        return [
            foreground(values, f"{name}: channel {channel}", intensity.kind)
            for values, channel, intensity in channels
        ]

    def _choose_box(self, masks: Sequence[np.ndarray]) -> tuple[slice, ...]:
        """The box around the foreground of any channel, with a margin; widened for pictures."""
        box = bounding_box(np.logical_or.reduce(masks), MARGIN)
        if self.size is not None and self.spatial_dims == 2:
            return _widen(box, self.size, masks[0].shape)
        return box

    def _choose_grid(
        self, box_shape: Sequence[int], spacing_mm: Sequence[float]
    ) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Step (box voxels per prepared voxel) and shape of the prepared grid.

        The step is exactly 1 where nothing is to be resampled.
        """
        unit = (1.0,) * len(box_shape)
        if self.size is not None:
            shape = self.size
            step = tuple(edge / count for edge, count in zip(box_shape, shape, strict=True))
            if self.spatial_dims == 2:
                # a stretched picture would show how it was rotated
                step = (max(step),) * 2
        elif self.spacing_mm is not None:
            step = tuple(
                1.0 if is_near((new,), (old,), self.keep_within) else new / old
                for new, old in zip(self.spacing_mm, spacing_mm, strict=True)
            )
            shape = tuple(
                max(1, round(edge / size)) for edge, size in zip(box_shape, step, strict=True)
            )
        else:
            return unit, tuple(box_shape)
        drift = [edge * abs(size - 1) for edge, size in zip(box_shape, step, strict=True)]
        if shape == tuple(box_shape) and all(voxels < SAME_GRID for voxels in drift):
            return unit, shape
        return step, shape


def _joined(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def recipe_of_card(card: Card, origin: str) -> Recipe:
    """The recipe of the scans that the network of a card was trained on.

    Args:
        card: of the network.
        origin: the run, for messages.

    Raises:
        WeightsError: it is damaged, or does not fit the network.
    """
    try:
        recipe = Recipe.from_dict(card.recipe)
    except DataError as error:
        raise WeightsError(f"{origin}: {error}; copy its card again") from None
    spatial_dims = card.spatial_dims if card.slices is None else 3
    if (recipe.spatial_dims, len(recipe.channel_names)) != (spatial_dims, card.in_channels):
        raise WeightsError(
            f"{origin}: its recipe is of {len(recipe.channel_names)} channels in "
            f"{recipe.spatial_dims}D and its network of {card.in_channels} in "
            f"{card.spatial_dims}D; copy its card again"
        )
    return recipe


def is_near(first: Sequence[float] | None, second: Sequence[float] | None, share: float) -> bool:
    """Whether two spacings differ by at most this share of the smaller one along every axis."""
    if first is None or second is None:
        return False
    # rounding: 1.2 / 1.0 is above 1.2
    limit = (1 + share) * (1 + 1e-6)
    pairs = zip(first, second, strict=True)
    return all(max(pair) <= limit * min(pair) for pair in pairs)


def _widen(box: Sequence[slice], size: Sequence[int], extents: Sequence[int]) -> tuple[slice, ...]:
    """Grow the box of a picture to the aspect ratio of `size`, as far as the picture reaches."""
    edges = [side.stop - side.start for side in box]
    step = max(edge / count for edge, count in zip(edges, size, strict=True))
    wide = []
    for side, edge, count, extent in zip(box, edges, size, extents, strict=True):
        width = min(extent, max(edge, int(step * count)))
        centred = side.start - (width - edge) // 2
        start = min(max(0, centred), extent - width)
        wide.append(slice(start, start + width))
    return tuple(wide)
