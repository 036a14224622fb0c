"""Geometry: how the voxels of a prepared scan relate to those of the original scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import nibabel as nib
import numpy as np
from pydantic import Field

from selfvox.data.formats.image import Image

# per axis of the scan: its canonical axis, and 1, or -1 where the axis is flipped
Orientation = tuple[tuple[int, int], ...]
Edge = Annotated[int, Field(ge=1, lt=2**31)]  # in voxels


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one scan was reoriented, cropped and resampled, in voxels: all that `Recipe.undo` needs.

    Canonical axes are those of the scan, swapped and flipped to the nearest RAS+ grid.
    """

    shape: tuple[Edge, ...]  # of the scan
    orientation: Orientation
    start: tuple[int, ...]  # of the foreground box, canonical axes
    stop: tuple[int, ...]  # of the foreground box, exclusive
    # canonical voxels per prepared voxel; the grids have one centre
    step: tuple[Annotated[float, Field(gt=0, le=1e6)], ...]
    prepared_shape: tuple[Edge, ...]

    def check(self) -> None:
        """Refuse lists that do not belong together.

        Raises:
            ValueError: names the first of them.
        """
        axes = len(self.shape)
        lists = (self.orientation, self.start, self.stop, self.step, self.prepared_shape)
        if any(len(values) != axes for values in lists):
            raise ValueError(f"not all lists are of {axes} axes")
        if sorted(axis for axis, _ in self.orientation) != list(range(axes)):
            raise ValueError("'orientation' does not name each axis once")
        if any(abs(sign) != 1 for _, sign in self.orientation):
            raise ValueError("'orientation' has a sign that is neither 1 nor -1")
        ends = zip(self.start, self.stop, self.canonical_shape, strict=True)
        if not all(0 <= start < stop <= extent for start, stop, extent in ends):
            raise ValueError("the foreground box is outside the scan")

    @property
    def box(self) -> tuple[slice, ...]:
        """The foreground box, canonical axes."""
        return tuple(slice(*ends) for ends in zip(self.start, self.stop, strict=True))

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Edges of the foreground box, canonical axes."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Shape of the scan, canonical axes."""
        shape = [0] * len(self.shape)
        for extent, (axis, _) in zip(self.shape, self.orientation, strict=True):
            shape[axis] = extent
        return tuple(shape)

    @property
    def offset(self) -> list[float]:
        """Position of the first prepared voxel, in voxels of the box; the centres coincide."""
        return [
            (edge - 1) / 2 - step * (count - 1) / 2
            for edge, step, count in zip(
                self.box_shape, self.step, self.prepared_shape, strict=True
            )
        ]

    @property
    def is_resampled(self) -> bool:
        """Whether the prepared grid differs from that of the box."""
        return self.box_shape != self.prepared_shape or any(step != 1 for step in self.step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the file calls the prepared shape `prepared`."""
        values = dataclasses.asdict(self)
        values["prepared"] = values.pop("prepared_shape")
        return values

    @staticmethod
    def by_field(values: Mapping[str, Any]) -> dict[str, Any]:
        """The values in a file, by the names of the fields."""
        return {("prepared_shape" if key == "prepared" else key): values[key] for key in values}


def canonical_orientation(image: Image) -> Orientation:
    """Per axis of the scan: the axis of the nearest RAS+ grid, and 1, or -1 where it is flipped."""
    if image.spatial_dims == 2:
        return ((0, 1), (1, 1))
    return tuple(
        (int(axis), int(sign)) for axis, sign in nib.orientations.io_orientation(image.affine)
    )


def canonical_spacing(image: Image, orientation: Orientation) -> tuple[float, ...]:
    """Voxel size in mm along each canonical axis."""
    return tuple(image.spacing_mm[orientation.index(pair)] for pair in sorted(orientation))


def orient(data: np.ndarray, orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    """Swap and flip the axes of (channel, *space) from the scan's to the canonical ones."""
    # nibabel reorders the leading axes
    turned = nib.orientations.apply_orientation(np.moveaxis(data, 0, -1), np.array(orientation))
    return np.ascontiguousarray(np.moveaxis(turned, -1, 0))


def orient_back(data: np.ndarray, orientation: Sequence[tuple[int, int]]) -> np.ndarray:
    """The inverse of `orient`."""
    identity = [(axis, 1) for axis in range(len(orientation))]
    inverse = nib.orientations.ornt_transform(np.array(identity), np.array(orientation))
    return orient(data, [(int(axis), int(sign)) for axis, sign in inverse])


def crop_to_box(label: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A label of the scan (*space) in the box around the foreground, canonical axes."""
    canonical = orient(label[None], geometry.orientation)[0]
    box: np.ndarray = canonical[geometry.box]
    return box


def place_in_scan(label: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A label (*space) in the box around the foreground, on the scan's own grid; 0 outside."""
    canonical = np.zeros(geometry.canonical_shape, dtype=label.dtype)
    canonical[geometry.box] = label
    scan: np.ndarray = orient_back(canonical[None], geometry.orientation)[0]
    return scan


def prepared_affine(affine: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(4, 4): prepared voxel -> mm, from the scan's affine: voxel of the scan -> mm."""
    product: np.ndarray = affine @ _canonical_to_scan(geometry) @ _prepared_to_canonical(geometry)
    return product


def _canonical_to_scan(geometry: Geometry) -> np.ndarray:
    """(4, 4): canonical voxel -> voxel of the scan."""
    matrix = np.eye(4)
    spatial = len(geometry.shape)
    matrix[:spatial, :spatial] = 0
    for index, (axis, sign) in enumerate(geometry.orientation):
        matrix[index, axis] = sign
        # a flipped axis counts from the scan's last voxel
        matrix[index, 3] = 0 if sign == 1 else geometry.shape[index] - 1
    return matrix


def _prepared_to_canonical(geometry: Geometry) -> np.ndarray:
    """(4, 4): prepared voxel -> canonical voxel."""
    matrix = np.eye(4)
    for axis, (start, step, offset) in enumerate(
        zip(geometry.start, geometry.step, geometry.offset, strict=True)
    ):
        matrix[axis, axis] = step
        matrix[axis, 3] = start + offset
    return matrix
