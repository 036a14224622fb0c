"""NIfTI files: every promise of the header is checked before memory is spent, every byte before it is believed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import isal_zlib
from nibabel.spatialimages import HeaderDataError

from selfvox.data.formats.safe_open import open_regular
from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.atomic_files import atomic_write

LIMIT_BYTES = 4 * 10**9
LIMIT_RATIO = 200
# Nearly empty label maps shrink a thousandfold, so the ratio is only asked of what could hurt.
HARMLESS_BYTES = 512 * 2**20

# isal's stubs take the class for an instance
DAMAGED: tuple[type[Exception], ...] = (isal_zlib.IsalError, EOFError)  # type: ignore[assignment]

_GZIP, _PEEK, _PADDING = b"\x1f\x8b", 2**17, 2**16
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED = {
    32: "complex voxels; save the magnitude",
    1792: "complex voxels; save the magnitude",
    2048: "complex voxels; save the magnitude",
    128: "colour (RGB) voxels; save one grey value per voxel",
    2304: "colour (RGBA) voxels; save one grey value per voxel",
    1536: "128-bit voxels; save it as float32",
    1: "1-bit voxels; save it as uint8",
}
_TEXTS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")


class Volume(NamedTuple):
    """Voxels and where they are."""

    data: (
        np.ndarray
    )  # (x, y, z) or (x, y, z, frame), as stored; floating where the header asks for scaling
    affine: np.ndarray  # (4, 4): voxel index -> mm, RAS+
    header: nib.Nifti1Header | None
    notes: tuple[str, ...]


class _Layout(NamedTuple):
    """What the header promises."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def end(self) -> int:
        voxels = 1
        for length in self.shape:  # Python integers: the product cannot overflow
            voxels *= length
        return self.offset + voxels * self.dtype.itemsize


def read_nifti(
    path: Path, limit_bytes: int = LIMIT_BYTES, limit_ratio: int = LIMIT_RATIO
) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`, whole and checked.

    The header's texts (description, names) are blanked: they may name a patient. Extensions are not read.

    Raises:
        DataError: the file is damaged, not what its name says, too large, or has no usable geometry.
    """
    name = printable(path.name)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_PEEK)
        packed = path.name.lower().endswith(".gz")
        header, notes = _parse(_first_bytes(start, packed, name), name)
        layout = _layout(header, name, notes)
        _check_size(layout.end, size, packed, limit_bytes, limit_ratio, name)
        affine = _affine(header, layout.shape, name, notes)
        file.seek(0)  # in one piece: joining the rest to the start would copy it
        content = _contents(file.read(), layout.end, packed, name)
    stored = np.frombuffer(
        content, layout.dtype, (layout.end - layout.offset) // layout.dtype.itemsize, layout.offset
    )
    data = _scale(stored, layout).reshape(layout.shape, order="F")
    for text in _TEXTS:
        if text in header.keys():  # noqa: SIM118  # nibabel's `in` asks for values
            header[text] = b""
    return Volume(data, affine, header, tuple(notes))


def write_nifti(
    path: Path, data: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None
) -> None:
    """Write (x, y, z) or (x, y, z, frame) on the grid of `header`, or of `affine` where there is none.

    sform, qform and their codes are kept; everything that is not geometry is reset.
    """
    fresh = header.as_byteswapped("<") if header is not None else _new_header(affine)
    for field in (
        *_TEXTS,
        "cal_max",
        "cal_min",
        "intent_code",
        "intent_p1",
        "intent_p2",
        "intent_p3",
        "scl_inter",
    ):
        if field in fresh.keys():  # noqa: SIM118
            fresh[field] = b"" if field in _TEXTS else 0
    fresh.set_data_shape(data.shape)
    fresh.set_data_dtype(data.dtype)
    fresh["pixdim"][4:] = 1  # of a series it was the time between frames
    fresh["scl_slope"] = 1
    fresh["vox_offset"] = fresh.single_vox_offset
    fresh["magic"] = fresh.single_magic
    content = fresh.binaryblock.ljust(fresh.single_vox_offset, b"\0")
    content += data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    if path.name.lower().endswith(".gz"):
        content = isal_zlib.compress(content, wbits=31)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _new_header(affine: np.ndarray) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_sform(affine, code="scanner")
    return header


def _first_bytes(start: bytes, packed: bool, name: str) -> bytes:
    if not start:
        raise DataError(f"{name}: the file is empty; copy it again from its source")
    if packed != start.startswith(_GZIP):
        found, ending = ("not gzip", ".nii.gz") if packed else ("gzip", ".nii")
        raise DataError(
            f"{name}: the contents are {found}, though the name ends in {ending}; rename or re-export it"
        )
    if not packed:
        return start
    try:
        return isal_zlib.decompressobj(31).decompress(start, 540)
    except DAMAGED as error:
        raise DataError(
            f"{name}: damaged gzip stream ({_reason(error)}); copy it again from its source"
        ) from error


def _parse(raw: bytes, name: str) -> tuple[nib.Nifti1Header, list[str]]:
    """The header of either version and byte order, judged by its magic and its number of dimensions."""
    if raw[4:7] == b"ni2" or raw[344:347] == b"ni1":
        raise DataError(f"{name}: one half of a .hdr/.img pair; convert it to a single .nii.gz")
    if raw[4:12] == b"n+2\0\r\n\x1a\n":
        kind, size, where, width = nib.Nifti2Header, 540, 16, 8
    elif raw[344:348] == b"n+1\0":
        kind, size, where, width = nib.Nifti1Header, 348, 40, 2
    elif len(raw) < 348:
        raise DataError(
            f"{name}: only {len(raw)} bytes, less than a NIfTI header; copy it again from its source"
        )
    else:
        raise DataError(f"{name}: not a NIfTI file (wrong magic bytes); export it as NIfTI")
    if len(raw) < size:
        raise DataError(
            f"{name}: the header is cut at {len(raw)} of {size} bytes; copy it again from its source"
        )
    order = next(
        (o for o in ("little", "big") if 1 <= int.from_bytes(raw[where : where + width], o) <= 7),
        None,
    )
    if order is None:
        raise DataError(f"{name}: the header's number of dimensions is not 1 to 7; export it again")
    header = kind(raw[:size], endianness="<" if order == "little" else ">", check=False)
    claimed = int(header["sizeof_hdr"])
    return header, [] if claimed == size else [
        f"header says its size is {claimed} bytes; it is {size}"
    ]


def _layout(header: nib.Nifti1Header, name: str, notes: list[str]) -> _Layout:
    dims = [int(d) for d in header["dim"][1 : int(header["dim"][0]) + 1]]
    if min(dims) < 1:
        raise DataError(
            f"{name}: dimensions {tuple(dims)} in the header are not all positive; export it again"
        )
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) > 4:
        raise DataError(
            f"{name}: has {len(dims)} dimensions {tuple(dims)}; save one 3D volume, or 4D with channels last"
        )
    dims += [1] * (3 - len(dims))

    code = int(header["datatype"])
    if code not in _TYPES:
        raise DataError(
            f"{name}: {_REFUSED.get(code, f'unknown voxel type {code}; export it again')}"
        )
    dtype = np.dtype(_TYPES[code]).newbyteorder(header.endianness)
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        notes.append(
            f"header says {int(header['bitpix'])} bits per voxel; its type {dtype.name} has {8 * dtype.itemsize}"
        )

    offset = float(header["vox_offset"])
    if not (
        offset >= header.single_vox_offset and offset.is_integer()
    ):  # NaN fails the first, infinity the second
        raise DataError(
            f"{name}: voxels cannot start at byte {offset:g} (vox_offset); export it again"
        )

    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        notes.append(f"slope {slope:g} taken as 1, intercept as 0")
        slope, intercept = 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError(
            f"{name}: slope {slope:g} and intercept {intercept:g} are not finite; export it again"
        )
    if unit := {1: "metre", 3: "micrometre"}.get(int(header["xyzt_units"]) & 7):
        notes.append(f"header's unit is the {unit}; its numbers are taken as mm")
    return _Layout(tuple(dims), dtype, int(offset), slope, intercept)


def _check_size(end: int, size: int, packed: bool, limit: int, ratio: int, name: str) -> None:
    if end > limit:
        raise DataError(
            f"{name}: its header asks for {end / 1e9:.1f} GB, more than {limit / 1e9:g}; crop or resample it"
        )
    if packed and end > HARMLESS_BYTES and end > ratio * size:
        raise DataError(
            f"{name}: would grow {end // size} fold to {end / 1e9:.1f} GB (limit {ratio}); unpack it to .nii"
        )
    if not packed and size < end:
        raise DataError(
            f"{name}: holds {size} bytes where its header asks for {end}; copy it again from its source"
        )
    if size > end + end // 100 + _PADDING:  # deflate adds at most a thousandth
        raise DataError(
            f"{name}: {size} bytes are more than its header accounts for ({end}); export it again"
        )


def _contents(content: bytes, end: int, packed: bool, name: str) -> bytes:
    """Header and voxels, unpacked to the end of the stream with its checksum and length checked."""
    if packed:
        inflate = isal_zlib.decompressobj(31)
        try:
            unpacked = inflate.decompress(content, end + _PADDING)
        except DAMAGED as error:
            raise DataError(
                f"{name}: damaged gzip stream ({_reason(error)}); copy it again from its source"
            ) from error
        if not inflate.eof and len(unpacked) < end + _PADDING:
            raise DataError(f"{name}: the gzip stream is cut; copy it again from its source")
        if inflate.unused_data.strip(b"\0"):
            raise DataError(
                f"{name}: more data after the end of the gzip stream; unpack and pack it again with gzip"
            )
        if not inflate.eof:
            raise DataError(
                f"{name}: unpacks to more than its header accounts for; export it again"
            )
        content = unpacked
    if len(content) < end:
        raise DataError(
            f"{name}: holds {len(content)} bytes where its header asks for {end}; copy it again"
        )
    if len(content) > end and content[end:].strip(b"\0"):
        raise DataError(
            f"{name}: more data after the voxels than its header accounts for; export it again"
        )
    return content


def _scale(stored: np.ndarray, layout: _Layout) -> np.ndarray:
    """Native byte order, slope and intercept applied; the very same memory where neither is needed."""
    if layout.slope == 1 and layout.intercept == 0:
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    exact_in_float32 = stored.dtype.itemsize <= 2 or stored.dtype.type is np.float32
    scaled = stored.astype(np.float32 if exact_in_float32 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the finite check that follows reports it
        np.multiply(scaled, layout.slope, out=scaled)
        np.add(scaled, layout.intercept, out=scaled)
    return scaled


def _affine(
    header: nib.Nifti1Header, shape: tuple[int, ...], name: str, notes: list[str]
) -> np.ndarray:
    """sform, else qform, else voxel sizes about the centre; disagreement and repairs are noted."""
    pixdim = header["pixdim"]
    if not np.isfinite(pixdim[1:4]).all():
        raise DataError(
            f"{name}: voxel sizes {tuple(map(float, pixdim[1:4]))} in the header; export it again"
        )
    if int(header["qform_code"]) > 0 and pixdim[0] not in (-1, 1):
        pixdim[0] = -1 if pixdim[0] < 0 else 1
    if (pixdim[1:4] < 0).any():
        notes.append("negative voxel sizes in the header taken as positive")
        pixdim[1:4] = abs(pixdim[1:4])

    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    if sform is not None:
        _check_usable(sform, "sform", name)
        if (pixdim[1:4] == 0).any():
            notes.append("voxel size 0 in the header; taken from the sform")
            pixdim[1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if (pixdim[1:4] == 0).any():
        raise DataError(
            f"{name}: voxel size 0 in the header and no sform to tell it; export it again"
        )

    qform, trouble = None, ""
    if int(header["qform_code"]) > 0:
        try:
            qform = header.get_qform()
            _check_usable(qform, "qform", name)
        except (ValueError, HeaderDataError, DataError):
            qform, trouble = None, "the qform's quaternion or offset is impossible"
    if sform is None and trouble:
        raise DataError(f"{name}: {trouble} and there is no sform; export it again")
    if sform is None and qform is None:
        notes.append("neither sform nor qform: orientation unknown, left and right may be swapped")
        return np.asarray(header.get_base_affine(), np.float64)
    if sform is None:
        return np.asarray(qform, np.float64)
    if trouble:
        notes.append(f"{trouble}; the sform is used")
    elif (
        qform is not None
        and (apart := furthest_corner(sform, qform, shape)) > 0.1 * pixdim[1:4].min()
    ):
        notes.append(f"sform and qform disagree by up to {apart:.3g} mm; the sform is used")
    return np.asarray(sform, np.float64)


def _check_usable(affine: np.ndarray, what: str, name: str) -> None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod()
    ):
        raise DataError(
            f"{name}: the {what} is no usable affine (not finite, or flat); export it again"
        )


def furthest_corner(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart, in mm, two affines put the same corner of a grid, where they differ most."""
    corners = np.stack(
        np.meshgrid(*[(0, n - 1) for n in shape[:3]], [1], indexing="ij"), -1
    ).reshape(-1, 4)
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())


def _reason(error: Exception) -> str:
    return str(error).partition(" ")[2].partition(" ")[2].lower() or "ends early"
