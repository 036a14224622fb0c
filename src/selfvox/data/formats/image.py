"""A scan with its geometry: read, checked, and written back on its own grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import nibabel as nib
import numpy as np

from selfvox.data.formats import dicom_series, itk, nifti, pictures
from selfvox.data.formats.label_table import NO_EXTENSION, label_table
from selfvox.data.formats.label_values import check_declared, class_numbers, smallest_unsigned
from selfvox.data.formats.volume import (
    LIMIT_BYTES,
    Volume,
    max_corner_distance_mm,
    spacing_along_ras,
)
from selfvox.data.naming import printable
from selfvox.errors import DataError

SUFFIXES_3D = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES_2D = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm")

# header geometry is float32 and tools round differently: an entry of the affine that differs by
# 1e-8 is the same grid, one that differs by a thousandth of a voxel is not
AFFINE_TOLERANCE_VOXELS = 1e-3
# at the grid's corners, where a small turn or difference in spacing adds up
CORNER_TOLERANCE_VOXELS = 0.1
NOTED_SKEW = 0.005  # of the volume of a voxel, by axes that are not perpendicular
MAX_UNUSABLE_SHARE = 0.01  # of the voxels: a few are repaired, more are a damaged scan
_BLOCK_VOXELS = 2**16
_LARGEST_UINT16 = 2**16 - 1


@dataclass(frozen=True)
class Image:
    """A scan with its geometry."""

    # (channel, *space): x, y, z of a volume, or row, column of a picture; as stored, scaled
    data: np.ndarray
    affine: np.ndarray  # (4, 4): voxel index -> mm, RAS+; the identity for a picture
    name: str
    header: nib.Nifti1Header | None = None
    notes: tuple[str, ...] = ()

    @property
    def spatial_dims(self) -> int:
        """3 for a volume, 2 for a picture."""
        return self.data.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each spatial axis."""
        return self.data.shape[1:]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Edges of a voxel; 1 for pictures, since the size of a pixel is not known."""
        # columns, which keep their length in a rotated scan
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: self.spatial_dims])

    @property
    def skew(self) -> float:
        """By which share the product of the edges is larger than a voxel: 0 of a block."""
        volume = abs(float(np.linalg.det(self.affine[:3, :3])))
        return float(np.prod(np.linalg.norm(self.affine[:3, :3], axis=0))) / volume - 1


def suffix(path: PurePath) -> str:
    """The ending that `read_image` understands, in lower case, or the empty string."""
    name = path.name.lower()
    for ending in (*SUFFIXES_3D, *SUFFIXES_2D):
        # a hidden file called `.nii` has no name of its own
        if name.endswith(ending) and name != ending:
            return ending
    return ""


def read_image(path: Path, channels: int = 1) -> Image:
    """Read a scan; a 4D file only where its last axis has `channels` > 1.

    Few NaN or infinite voxels become the channel's minimum, with a note. The data may be read-only.

    Raises:
        DataError: the file cannot be used; the message says why and what to do.
    """
    name = printable(path.name)
    if suffix(path) in SUFFIXES_2D:
        data, notes = pictures.read_picture(path)
        return check_image(Image(data, np.eye(4), name, None, notes))
    volume = _read_volume(path)
    data = volume.data[None] if volume.data.ndim == 3 else np.moveaxis(volume.data, 3, 0)
    if len(data) > 1 and len(data) != channels:
        expected = f"{channels} channels are" if channels > 1 else "one volume is"
        raise DataError(
            f"{name}: has {len(data)} volumes where {expected} expected; "
            "split it, or declare its channels"
        )
    return check_image(Image(data, volume.affine, name, volume.header, volume.notes))


def read_spacing(path: Path) -> tuple[float, ...]:
    """Edges of a volume's voxel in mm, along the axes of the nearest RAS+ grid.

    Reads the header alone.

    Raises:
        DataError: the header is damaged, or the file is no volume.
    """
    ending = suffix(path)
    if ending in (".nii.gz", ".nii"):
        affine = nifti.read_affine(path)
    elif ending in SUFFIXES_3D:
        affine = itk.read_affine(path)
    else:
        raise DataError(f"{printable(path.name)}: is no volume, so its voxels have no size in mm")
    return spacing_along_ras(affine)


def read_slices(paths: Sequence[Path], name: str, allow_gap: bool = False) -> Image:
    """Read the slices of one DICOM series as a volume of one channel, called `name`.

    With `allow_gap`, missing slices are interpolated.

    Raises:
        DataError: the slices cannot be used, or do not make a volume.
    """
    volume = dicom_series.read_series(paths, name, allow_gap)
    return check_image(Image(volume.data[None], volume.affine, name, None, volume.notes))


def read_label(path: Path, like: Image, classes: Collection[int] | None = None) -> np.ndarray:
    """Class numbers (*space), uint8 or uint16, on the very grid of `like`.

    Raises:
        DataError: other shape or affine; values that are negative, fractional, not finite, or not
            in `classes`.
    """
    return read_label_with_notes(path, like, classes)[0]


def read_label_with_notes(
    path: Path, like: Image, classes: Collection[int] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """As `read_label`, and what was assumed while it was read, one line each.

    Raises:
        DataError: as `read_label`.
    """
    name = printable(path.name)
    if name == like.name:
        # a scan and its label often differ in their folders alone
        name = f"{printable(path.parent.name)}/{name}"
    lossy = False
    slope = 1.0
    if suffix(path) in SUFFIXES_2D:
        values, lossy = pictures.read_label(path)
    else:
        volume = _read_volume(path)
        values = volume.data
        if values.ndim != 3:
            raise DataError(_several_volumes(values, name))
        if values.shape == like.shape:
            _check_same_grid(volume.affine, like, name)
        slope = _stored_slope(volume)
    if values.shape != like.shape:
        raise DataError(
            f"{name}: label of shape {values.shape} for {like.name} of {like.shape}; "
            "resample the label to it"
        )
    label, notes = class_numbers(values, name, slope)
    if classes is not None:
        check_declared(label, classes, name)
    if lossy:
        raise DataError(f"{name}: JPEG blurs class numbers; save labels as PNG")
    return label, notes


def read_grid(path: Path) -> Image:
    """A label's file as an image, for its grid; unlike a scan it may be empty.

    `read_label` then compares this label, and others, with that grid.

    Raises:
        DataError: the file cannot be used, or has more than one number per voxel.
    """
    name = printable(path.name)
    if suffix(path) in SUFFIXES_2D:
        values, _ = pictures.read_label(path)
        return Image(values[None], np.eye(4), name)
    volume = _read_volume(path)
    if volume.data.ndim != 3:
        raise DataError(_several_volumes(volume.data, name))
    return Image(volume.data[None], volume.affine, name, volume.header, volume.notes)


def write_label(
    path: Path, label: np.ndarray, like: Image, classes: Mapping[int, str] | None = None
) -> None:
    """Write class numbers (*space) on the grid of `like`, in the smallest unsigned type.

    As NIfTI, NRRD or MetaImage for a volume, by the ending of the path; as PNG for a picture. The
    names of `classes` go into the header of NIfTI; other formats have no place for them.
    """
    assert label.shape == like.shape, f"label {label.shape} for {like.name} {like.shape}"
    values = label.astype(smallest_unsigned(int(label.max())))
    extension = label_table(classes) if classes else NO_EXTENSION
    _write(path, values, like, (".png",), extension=extension)


def write_volume(path: Path, values: np.ndarray, like: Image) -> None:
    """Write one channel (x, y, z) on the grid of `like` as NIfTI, in the type that it has.

    Numbers of 8 bytes are written in 4, which is what formats of scans store.

    Raises:
        DataError: whole numbers do not fit into 4 bytes.
    """
    assert values.shape == like.shape, f"scan {values.shape} for {like.name} {like.shape}"
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    elif values.dtype.itemsize == 8:
        limits = np.iinfo(np.int32)
        if values.min() < limits.min or values.max() > limits.max:
            raise DataError(f"{like.name}: has numbers that do not fit into 4 bytes; rescale it")
        values = values.astype(np.int32)
    _write(path, values, like, ())


def write_map(path: Path, values: np.ndarray, like: Image) -> None:
    """Write numbers (*space) or (class, *space) on the grid of `like` as float32.

    As NIfTI with classes last for a volume, as TIFF for a picture.
    """
    space = values.shape[-like.spatial_dims :]
    assert space == like.shape, f"map {values.shape} for {like.name} {like.shape}"
    _write(path, values.astype(np.float32, copy=False), like, (".tif", ".tiff"))


def write_compact_map(path: Path, values: np.ndarray, like: Image) -> None:
    """Write numbers that are not negative as `write_map` does, for a volume in two bytes each.

    They are multiples of a 65535th of the largest one, so that four of its digits are kept. A TIFF
    has no room for that factor and stays float32.
    """
    if like.spatial_dims == 2:
        write_map(path, values, like)
        return
    # float32, as the header has it, so that readers multiply by the very number
    slope = float(np.float32(values.max() / _LARGEST_UINT16)) or 1.0
    multiples = np.rint(values.astype(np.float32, copy=False) / slope)
    stored = np.minimum(multiples, _LARGEST_UINT16).astype(np.uint16)
    _write(path, stored, like, (), slope)


def read_map(path: Path, count: int, like: Image) -> np.ndarray:
    """Numbers (map, *space), float32, as `write_map` writes `count` maps on the grid of `like`.

    Raises:
        DataError: the file cannot be used, or contains other maps.
    """
    if suffix(path) in SUFFIXES_2D:
        values = pictures.read_pages(path)
    else:
        # of many classes they may exceed the limit for scans, and they are selfvox's own
        limit = LIMIT_BYTES + 4 * count * math.prod(like.shape)
        data = nifti.read_nifti(path, limit_bytes=limit).data
        values = np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None]
    if values.shape != (count, *like.shape):
        raise DataError(
            f"{printable(path.name)}: has shape {values.shape}, not {count} maps of {like.shape}; "
            "predict it again"
        )
    return values


def grid_distance_voxels(affine: np.ndarray, like: Image) -> float:
    """How far a grid of the same shape is from that of `like`, at its furthest corner.

    0 if both are the same up to rounding.
    """
    # of the shortest edge, the strictest
    edge = min(like.spacing_mm)
    entry = float(np.abs(affine - like.affine).max() / edge)
    corner = 0.0
    if like.spatial_dims == 3:
        corner = max_corner_distance_mm(affine, like.affine, like.shape) / edge
    if entry <= AFFINE_TOLERANCE_VOXELS and corner <= CORNER_TOLERANCE_VOXELS:
        return 0.0
    return max(entry, corner)


def check_image(image: Image) -> Image:
    """The image without NaN and infinity; refused where a channel is constant."""
    data, count = _replace_unusable(image.data, image.name)
    notes = image.notes
    if image.spatial_dims == 3 and image.skew > NOTED_SKEW:
        notes = (
            *notes,
            f"its axes are not perpendicular: volumes are {100 * image.skew:.0f} % too large, "
            "distances are approximate; resample it to perpendicular axes for exact ones",
        )
    if count:
        notes = (*notes, f"{count} NaN or infinite voxels replaced by the minimum")
    for number, channel in enumerate(data):
        if _is_constant(channel):
            channel_name = f"channel {number} " if len(data) > 1 else ""
            raise DataError(
                f"{image.name}: {channel_name}has the same value everywhere; leave this scan out"
            )
    return replace(image, data=data, notes=notes)


def _stored_slope(volume: Volume) -> float:
    """What a NIfTI header scales whole numbers by; 1 where it scales nothing."""
    if volume.header is None or volume.header.get_data_dtype().kind not in "iu":
        return 1.0
    slope = float(volume.header["scl_slope"])
    return slope if np.isfinite(slope) and slope != 0 else 1.0


def _several_volumes(values: np.ndarray, name: str) -> str:
    return (
        f"{name}: has {values.shape[3]} volumes where a label is one; "
        "write all classes into one volume, a number each"
    )


def _write(
    path: Path,
    values: np.ndarray,
    like: Image,
    picture_suffixes: tuple[str, ...],
    slope: float = 1.0,
    extension: bytes = NO_EXTENSION,
) -> None:
    volume_suffixes = (".nii.gz", ".nii", *itk.WRITTEN_SUFFIXES)
    endings = picture_suffixes if like.spatial_dims == 2 else volume_suffixes
    if suffix(path) not in endings:
        raise ValueError(f"{path.name} for {like.name}: must end in {' or '.join(endings)}")
    if like.spatial_dims == 2:
        pictures.write_picture(path, values)
        return
    classes_last = np.moveaxis(values, 0, -1) if values.ndim == 4 else values
    if suffix(path) in itk.WRITTEN_SUFFIXES:
        itk.write_itk(path, classes_last, like.affine)
        return
    nifti.write_nifti(path, classes_last, like.affine, like.header, slope, extension)


def _read_volume(path: Path) -> Volume:
    name = printable(path.name)
    ending = suffix(path)
    if ending in (".nii.gz", ".nii"):
        volume = nifti.read_nifti(path)
    elif ending in SUFFIXES_3D:
        volume = itk.read_itk(path)
    else:
        endings = " ".join((*SUFFIXES_3D, *SUFFIXES_2D))
        raise DataError(f"{name}: unknown kind of file; known are {endings}")
    if 1 in volume.data.shape[:3]:
        raise DataError(
            f"{name}: a single slice {volume.data.shape}; "
            "join the slices to a volume, or save them as PNG"
        )
    return volume


def _replace_unusable(data: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """The data with unusable voxels replaced by their channel's minimum, and their number.

    Unusable is what is not finite in float32, in which scans are prepared.
    """
    if data.dtype.kind != "f":
        return data, 0
    with np.errstate(over="ignore", invalid="ignore"):
        # NaN and infinity survive a sum, which allocates nothing
        if np.isfinite(data.sum(dtype=np.float32)):
            return data, 0
        usable = np.isfinite(data.astype(np.float32, copy=False))
    count = int(data.size - np.count_nonzero(usable))
    if count == 0:  # the values are finite, their sum is not
        return data, 0
    if count > MAX_UNUSABLE_SHARE * data.size:
        raise DataError(
            f"{name}: {count} of {data.size} voxels are NaN or infinite, more than 1 %; "
            "repair the scan"
        )
    # read-only where it is the file's own bytes; K keeps the order in memory
    data = data.copy(order="K")
    for channel, usable_voxels in zip(data, usable, strict=True):
        channel[~usable_voxels] = channel.min(where=usable_voxels, initial=np.inf)
    return data, count


def _is_constant(channel: np.ndarray) -> bool:
    """In blocks, so that almost every scan is decided by its first."""
    flat = channel.ravel(order="K")
    starts = range(0, flat.size, _BLOCK_VOXELS)
    return all((flat[start : start + _BLOCK_VOXELS] == flat[0]).all() for start in starts)


def _check_same_grid(affine: np.ndarray, like: Image, name: str) -> None:
    distance = grid_distance_voxels(affine, like)
    if distance > 0:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        same_spacing = np.allclose(spacing, like.spacing_mm, rtol=1e-4)
        difference = "affine" if same_spacing else "voxel size"
        raise DataError(
            f"{name}: its {difference} differs from that of {like.name} by {distance:.2g} voxels; "
            "resample the label to it"
        )
