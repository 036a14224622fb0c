"""A scan with its geometry: read, checked, and written back on its own grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from selfvox.data.formats import dicom_series, itk, nifti, pictures
from selfvox.data.naming import printable
from selfvox.errors import DataError

SUFFIXES_3D = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES_2D = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

# Header geometry is float32 and tools round differently: 1e-8 is the same grid, a thousandth of a voxel is not.
AFFINE_TOLERANCE_VOXELS = 1e-3
FURTHEST_TOLERANCE_VOXELS = (
    0.1  # at the grid's corners, where a small turn or difference in spacing has added up
)
MOST_UNUSABLE = 0.01
_BLOCK = 2**16


@dataclass(frozen=True)
class Image:
    """A scan with its geometry."""

    data: np.ndarray  # (channel, *space): x, y, z of a volume, or row, column of a picture; values as stored, scaled
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
        """Edges of a voxel; 1 for pictures, whose pixels have no known size."""
        return tuple(
            float(x) for x in np.linalg.norm(self.affine[:3, :3], axis=0)[: self.spatial_dims]
        )


def suffix(path: Path) -> str:
    """The ending that `read` understands, in lower case, or the empty string."""
    name = path.name.lower()
    return next((s for s in (*SUFFIXES_3D, *SUFFIXES_2D) if name.endswith(s) and name != s), "")


def read_image(path: Path, channels: int = 1) -> Image:
    """Read a scan; a 4D file only where its last axis has `channels` > 1.

    Few NaN or infinite voxels become the channel's minimum, with a note. The data may be read-only.

    Raises:
        DataError: the file cannot be used; the message says why and what to do.
    """
    name = printable(path.name)
    if suffix(path) in SUFFIXES_2D:
        data, notes = pictures.read_picture(path)
        affine, header = np.eye(4), None
    else:
        volume = _read_volume(path)
        affine, header, notes = volume.affine, volume.header, volume.notes
        data = volume.data[None] if volume.data.ndim == 3 else np.moveaxis(volume.data, 3, 0)
        if len(data) > 1 and len(data) != channels:
            wanted = f"{channels} channels are" if channels > 1 else "one volume is"
            raise DataError(
                f"{name}: holds {len(data)} volumes where {wanted} expected; split it, or declare its channels"
            )
    return _usable(Image(data, affine, name, header, notes))


def read_slices(paths: Sequence[Path], name: str, allow_gap: bool = False) -> Image:
    """Read the slices of one DICOM series as a volume of one channel, called `name`; its gaps filled, if allowed.

    Raises:
        DataError: the slices cannot be used, or do not make a volume.
    """
    volume = dicom_series.read_series(paths, name, allow_gap)
    return _usable(Image(volume.data[None], volume.affine, name, None, volume.notes))


def _usable(image: Image) -> Image:
    """The image without NaN and infinity; refused where a channel is constant."""
    (data, count), name, notes = _finite(image.data, image.name), image.name, image.notes
    if count:
        notes = (*notes, f"{count} NaN or infinite voxels replaced by the minimum")
    for number, channel in enumerate(data):
        if _constant(channel):
            which = f"channel {number} has" if len(data) > 1 else "has"
            raise DataError(f"{name}: {which} the same value everywhere; leave this scan out")
    return replace(image, data=data, notes=notes)


def read_label(path: Path, like: Image, classes: Collection[int] | None = None) -> np.ndarray:
    """Class numbers (*space), uint8 or uint16, on the very grid of `like`.

    Raises:
        DataError: other shape or affine; values that are negative, fractional, not finite, or not in `classes`.
    """
    name = printable(path.name)
    lossy = False
    if suffix(path) in SUFFIXES_2D:
        values, lossy = pictures.read_label(path)
    else:
        volume = _read_volume(path)
        values = volume.data
        if values.shape == like.shape:
            _check_same_grid(volume.affine, like, name)
    if values.shape != like.shape:
        raise DataError(
            f"{name}: label of shape {values.shape} for {like.name} of {like.shape}; resample the label to it"
        )
    label = _integers(values, name)
    if classes is not None:
        unexpected = sorted(set(_present(label)) - set(classes))
        if unexpected:
            listed = ", ".join(map(str, unexpected[:10])) + (
                ", ..." if len(unexpected) > 10 else ""
            )
            declared = ", ".join(map(str, sorted(classes)))
            raise DataError(
                f"{name}: unexpected label values {listed}; declared are {declared}: correct one or the other"
            )
    if lossy:
        raise DataError(f"{name}: JPEG blurs class numbers; save labels as PNG")
    return label


def read_grid(path: Path) -> Image:
    """A label's file as an image, for its grid: `read_label` holds it, and other labels, against that. May be empty.

    Raises:
        DataError: the file cannot be used, or has more than one number per voxel.
    """
    if suffix(path) in SUFFIXES_2D:
        return Image(pictures.read_label(path)[0][None], np.eye(4), printable(path.name))
    volume = _read_volume(path)
    if volume.data.ndim != 3:
        raise DataError(
            f"{printable(path.name)}: holds {volume.data.shape[3]} volumes where a label is one; split it"
        )
    return Image(
        volume.data[None], volume.affine, printable(path.name), volume.header, volume.notes
    )


def write_label(path: Path, label: np.ndarray, like: Image) -> None:
    """Write class numbers (*space) on the grid of `like`, as NIfTI or PNG, in the smallest unsigned type."""
    assert label.shape == like.shape, f"label {label.shape} for {like.name} {like.shape}"
    largest = int(label.max())
    label = label.astype(
        np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32
    )
    _write(path, label, like, (".png",))


def write_map(path: Path, values: np.ndarray, like: Image) -> None:
    """Write numbers (*space) or (class, *space) on the grid of `like` as float32: NIfTI with classes last, or TIFF."""
    assert values.shape[-like.spatial_dims :] == like.shape, (
        f"map {values.shape} for {like.name} {like.shape}"
    )
    _write(path, values.astype(np.float32, copy=False), like, (".tif", ".tiff"))


def read_map(path: Path, count: int, like: Image) -> np.ndarray:
    """Numbers (map, *space), float32, as `write_map` wrote `count` maps on the grid of `like`, however large.

    Raises:
        DataError: the file cannot be used, or holds other maps.
    """
    if suffix(path) in SUFFIXES_2D:
        values = pictures.read_pages(path)
    else:
        enough = nifti.LIMIT_BYTES + 4 * count * math.prod(like.shape)
        data = nifti.read_nifti(path, limit_bytes=enough, limit_ratio=enough).data
        values = np.moveaxis(data, 3, 0) if data.ndim == 4 else data[None]
    if values.shape != (count, *like.shape):
        raise DataError(
            f"{printable(path.name)}: holds {values.shape}, not {count} maps of {like.shape}; predict it again"
        )
    return values


def _write(path: Path, values: np.ndarray, like: Image, picture_suffixes: tuple[str, ...]) -> None:
    endings = picture_suffixes if like.spatial_dims == 2 else (".nii.gz", ".nii")
    if suffix(path) not in endings:
        raise ValueError(f"{path.name} for {like.name}: must end in {' or '.join(endings)}")
    if like.spatial_dims == 2:
        pictures.write_picture(path, values)
    else:
        nifti.write_nifti(
            path,
            np.moveaxis(values, 0, -1) if values.ndim == 4 else values,
            like.affine,
            like.header,
        )


def _read_volume(path: Path) -> nifti.Volume:
    name, ending = printable(path.name), suffix(path)
    if ending in (".nii.gz", ".nii"):
        volume = nifti.read_nifti(path)
    elif ending in SUFFIXES_3D:
        volume = itk.read_itk(path)
    else:
        raise DataError(
            f"{name}: unknown kind of file; known are {' '.join((*SUFFIXES_3D, *SUFFIXES_2D))}"
        )
    if 1 in volume.data.shape[:3]:
        raise DataError(
            f"{name}: a single slice {volume.data.shape}; join the slices to a volume, or save them as PNG"
        )
    return volume


def _finite(data: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """The data with unusable voxels replaced by their channel's minimum, and how many there were.

    Unusable is what is not finite in float32, in which scans are prepared.
    """
    if data.dtype.kind != "f":
        return data, 0
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(
            data.sum(dtype=np.float32)
        ):  # NaN and infinity survive a sum; nothing is allocated
            return data, 0
        good = np.isfinite(data.astype(np.float32, copy=False))
    count = int(data.size - np.count_nonzero(good))
    if count == 0:
        return data, 0
    if count > MOST_UNUSABLE * data.size:
        raise DataError(
            f"{name}: {count} of {data.size} voxels are NaN or infinite, more than 1 %; repair the scan"
        )
    data = data.copy(order="K")
    for channel, usable in zip(data, good, strict=True):
        channel[~usable] = channel.min(where=usable, initial=np.inf)
    return data, count


def _constant(channel: np.ndarray) -> bool:
    flat = channel.ravel(order="K")
    return all((flat[i : i + _BLOCK] == flat[0]).all() for i in range(0, flat.size, _BLOCK))


def grid_distance_voxels(affine: np.ndarray, like: Image) -> float:
    """How far a grid of the same shape lies from that of `like`, at its furthest corner; 0 if the two are the same."""
    edge = min(like.spacing_mm)
    off = float(np.abs(affine - like.affine).max() / edge)
    furthest = (
        nifti.furthest_corner(affine, like.affine, like.shape) / edge
        if like.spatial_dims == 3
        else 0.0
    )
    return (
        max(off, furthest)
        if off > AFFINE_TOLERANCE_VOXELS or furthest > FURTHEST_TOLERANCE_VOXELS
        else 0.0
    )


def _check_same_grid(affine: np.ndarray, like: Image, name: str) -> None:
    off = grid_distance_voxels(affine, like)
    if off > 0:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        what = "voxel size" if not np.allclose(spacing, like.spacing_mm, rtol=1e-4) else "affine"
        raise DataError(
            f"{name}: its {what} differs from that of {like.name} by {off:.2g} voxels; resample the label to it"
        )


def _integers(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        with np.errstate(invalid="ignore"):
            if not (
                np.abs(values - rounded) <= 1e-5
            ).all():  # NaN fails; a slope such as 1/255 leaves 1.0000001
                raise DataError(
                    f"{name}: label values are not whole numbers; save class numbers, without interpolation"
                )
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            f"{name}: label values from {low:g} to {high:g}; class numbers are 0 to 65535"
        )
    return values.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16, copy=False)


def _present(label: np.ndarray) -> list[int]:
    """The values that occur."""
    seen = np.zeros(2**16, bool)
    flat = label.ravel(order="K")
    for i in range(0, flat.size, _BLOCK):  # in blocks: indexing makes eight bytes of each voxel
        seen[flat[i : i + _BLOCK]] = True
    return [int(value) for value in np.flatnonzero(seen)]
