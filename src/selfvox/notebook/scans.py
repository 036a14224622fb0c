"""What a notebook may pass as a scan: a path, an array or an image of nibabel; read and checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, UsageError


class SpatialImage(Protocol):
    """An image of nibabel, such as `nibabel.load` returns."""

    @property
    def affine(self) -> Any:
        """(4, 4): voxel index -> mm, RAS+."""

    @property
    def dataobj(self) -> Any:
        """The voxels, read when they are converted to an array."""


AnyPath: TypeAlias = str | os.PathLike[str]
# a file or a folder of one scan; an array (*space) or (channel, *space); an image of nibabel
Scan: TypeAlias = AnyPath | np.ndarray | SpatialImage


def read_scan(
    scan: Scan,
    recipe: Recipe,
    spacing: Sequence[float] | None,
    affine: np.ndarray | None,
    needs_spacing: bool = False,
) -> Image:
    """The scan as an image with its geometry.

    Raises:
        UsageError: a spacing is missing, given next to an affine, or for a scan that has its own.
        DataError: the scan cannot be used.
    """
    if isinstance(scan, np.ndarray):
        return _from_array(scan, recipe, spacing, affine, needs_spacing)
    if spacing is not None or affine is not None:
        raise UsageError("spacing: only an array needs it, the scan has its own; leave it out")
    if isinstance(scan, str | os.PathLike):
        return _from_path(Path(scan), len(recipe.channel_names))
    # scaled by slope and intercept
    data = np.asanyarray(scan.dataobj)
    if data.ndim == 4:
        # NIfTI has the channels last
        data = np.moveaxis(data, 3, 0)
    return _as_image(data, np.asarray(scan.affine), recipe, "image")


def _from_path(path: Path, channels: int) -> Image:
    # as the command line does: a DICOM folder is one scan
    cases = find_dataset(path).cases
    if len(cases) != 1:
        raise DataError(f"{path}: has {len(cases)} scans; pass one, or use selfvox.predict")
    return read_case(cases[0], channels)


def _from_array(
    array: np.ndarray,
    recipe: Recipe,
    spacing: Sequence[float] | None,
    affine: np.ndarray | None,
    needs_spacing: bool,
) -> Image:
    d = recipe.spatial_dims
    if affine is not None:
        if spacing is not None:
            raise UsageError("spacing: the affine has it already; give one of them")
        return _as_image(array, np.asarray(affine, dtype=float), recipe, "array")
    if d == 3 and spacing is None and (needs_spacing or recipe.spacing_mm is not None):
        reason = "the run resamples scans by it" if recipe.spacing_mm else "volumes are in ml"
        raise UsageError(
            f"spacing: an array does not say its own, and {reason}; give it in mm, such as "
            "--spacing 1,1,1"
        )
    if spacing is not None and (len(spacing) != d or not min(spacing) > 0):
        raise UsageError(f"spacing: {tuple(spacing)} should be {d} numbers above 0, in mm")
    # a spacing may be missing where nothing depends on it; pictures have none
    sizes = [*(spacing or ()), 1.0, 1.0, 1.0][:3] if d == 3 else [1.0, 1.0, 1.0]
    return _as_image(array, np.diag([*sizes, 1.0]), recipe, "array")


def _as_image(data: np.ndarray, affine: np.ndarray, recipe: Recipe, name: str) -> Image:
    d = recipe.spatial_dims
    if data.ndim == d:
        data = data[None]
    if data.ndim != d + 1:
        raise DataError(
            f"{name} of shape {data.shape}: the run takes {d}D scans of "
            f"{len(recipe.channel_names)} channels; give (*space) or (channel, *space)"
        )
    return images.check_image(Image(data, affine, name))
