"""NIfTI files: the header is checked before memory is allocated, the bytes before they are used."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal, NamedTuple

import nibabel as nib
import numpy as np
from isal import isal_zlib
from nibabel.spatialimages import HeaderDataError

from selfvox.data.formats.label_table import NO_EXTENSION
from selfvox.data.formats.volume import (
    DEFLATE_RATIO,
    INFLATE_ERRORS,
    LIMIT_BYTES,
    Volume,
    check_memory,
    is_usable_affine,
    max_corner_distance_mm,
    voxel_edges,
)
from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.safe_open import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 2**12
_START_BYTES = 2**17  # read first, to judge the header before the rest is read
_PADDING_BYTES = 2**16  # zeros that may follow the voxels
_NIFTI1_BYTES = 348
_NIFTI2_BYTES = 540

# datatype codes of the NIfTI standard, <https://nifti.nimh.nih.gov/nifti-1>
_DTYPES = {
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
_REFUSED_DTYPES = {
    32: "complex voxels; save the magnitude",
    1792: "complex voxels; save the magnitude",
    2048: "complex voxels; save the magnitude",
    128: "colour (RGB) voxels; save one grey value per voxel",
    2304: "colour (RGBA) voxels; save one grey value per voxel",
    1536: "128-bit voxels; save it as float32",
    1: "1-bit voxels; save it as uint8",
}
_UNITS_MM = {1: ("metre", 1000.0), 3: ("micrometre", 0.001)}
# texts may name a patient
_TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
# neither geometry nor true of the written voxels
_VALUE_FIELDS = (
    "cal_max",
    "cal_min",
    "intent_code",
    "intent_p1",
    "intent_p2",
    "intent_p3",
    "scl_inter",
)


class _Layout(NamedTuple):
    """How the voxels are stored, as the header says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)  # Python integers: the product cannot overflow

    @property
    def end(self) -> int:
        """Bytes of the header and the voxels."""
        return self.offset + self.voxels * self.dtype.itemsize


def read_nifti(path: Path, limit_bytes: int = LIMIT_BYTES) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, `.nii` or `.nii.gz`, whole and checked.

    The header's texts (description, names) are blanked: they may name a patient. Extensions are not
    read.

    Raises:
        DataError: the file is damaged, not what its name says, too large, or without geometry.
    """
    name = printable(path.name)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_START_BYTES)
        packed = path.name.lower().endswith(".gz")
        header, notes = _parse_header(_first_bytes(start, packed, name), name)
        layout = _layout(header, name, notes)
        _check_size(layout.end, size, packed, limit_bytes, name)
        affine = _affine(header, layout.shape, name, notes)
        file.seek(0)  # in one piece: joining the rest to the start would copy it
        content = _contents(file.read(), layout.end, packed, name)
    stored = np.frombuffer(content, layout.dtype, layout.voxels, layout.offset)
    data = _scale(stored, layout).reshape(layout.shape, order="F")
    for field in _TEXT_FIELDS:
        if field in header.keys():  # noqa: SIM118  # nibabel's `in` looks at values
            header[field] = b""
    return Volume(data, affine, header, tuple(notes))


def read_affine(path: Path) -> np.ndarray:
    """The affine (4, 4) of a NIfTI file, voxel -> mm, from its header alone.

    Raises:
        DataError: the header is damaged or without geometry.
    """
    name = printable(path.name)
    with open_regular(path) as file:
        # a header, also a packed one, is far shorter
        start = file.read(_HEADER_BYTES)
    packed = path.name.lower().endswith(".gz")
    header, notes = _parse_header(_first_bytes(start, packed, name), name)
    layout = _layout(header, name, notes)
    return _affine(header, layout.shape, name, notes)


def write_nifti(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    header: nib.Nifti1Header | None,
    slope: float = 1.0,
    extension: bytes = NO_EXTENSION,
) -> None:
    """Write (x, y, z) or (x, y, z, frame) on the grid of `header`, or of `affine` without one.

    sform, qform and their codes are kept; all that is not geometry is reset. Readers multiply the
    stored numbers by `slope`. `extension` is what is between the header and the voxels.
    """
    # little-endian, as the voxels are written
    written = _new_header(affine) if header is None else header.as_byteswapped("<")
    for field in (*_TEXT_FIELDS, *_VALUE_FIELDS):
        if field in written.keys():  # noqa: SIM118
            written[field] = b"" if field in _TEXT_FIELDS else 0
    written.set_data_shape(data.shape)
    written.set_data_dtype(data.dtype)
    written["pixdim"][4:] = 1  # in a time series: the time between frames
    written["scl_slope"] = slope
    written["vox_offset"] = written.sizeof_hdr + len(extension)
    written["magic"] = written.single_magic
    content = written.binaryblock + extension
    content += data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    if path.name.lower().endswith(".gz"):
        # 31: with the header and checksum of gzip
        content = isal_zlib.compress(content, wbits=31)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _new_header(affine: np.ndarray) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    # a quaternion has no shears; the sform keeps them, and who prefers the qform has to see that
    header.set_qform(affine, code="scanner", strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-3 * header["pixdim"][1:4].min()):
        header["qform_code"] = 0
    header.set_sform(affine, code="scanner")
    return header


def _first_bytes(start: bytes, packed: bool, name: str) -> bytes:
    """The start of a file, unpacked as far as a header reaches."""
    if not start:
        raise DataError(f"{name}: the file is empty; copy it again from its source")
    if packed != start.startswith(_GZIP_MAGIC):
        contents, ending = ("not gzip", ".nii.gz") if packed else ("gzip", ".nii")
        raise DataError(
            f"{name}: the contents are {contents}, though the name ends in {ending}; "
            "rename or re-export it"
        )
    if not packed:
        return start
    try:
        return isal_zlib.decompressobj(31).decompress(start, _NIFTI2_BYTES)
    except INFLATE_ERRORS as error:
        raise DataError(
            f"{name}: damaged gzip stream ({_reason(error)}); copy it again from its source"
        ) from error


def _parse_header(raw: bytes, name: str) -> tuple[nib.Nifti1Header, list[str]]:
    """The header of either version and byte order, and notes."""
    if raw[4:7] == b"ni2" or raw[344:347] == b"ni1":
        raise DataError(f"{name}: one half of a .hdr/.img pair; convert it to a single .nii.gz")
    if raw[4:12] == b"n+2\0\r\n\x1a\n":
        header_class = nib.Nifti2Header
        size = _NIFTI2_BYTES
        dimensions = raw[16:24]
    elif raw[344:348] == b"n+1\0":
        header_class = nib.Nifti1Header
        size = _NIFTI1_BYTES
        dimensions = raw[40:42]
    elif len(raw) < _NIFTI1_BYTES:
        raise DataError(
            f"{name}: only {len(raw)} bytes, less than a NIfTI header; "
            "copy it again from its source"
        )
    else:
        raise DataError(f"{name}: not a NIfTI file (wrong magic bytes); export it as NIfTI")
    if len(raw) < size:
        raise DataError(
            f"{name}: the header is cut at {len(raw)} of {size} bytes; "
            "copy it again from its source"
        )
    endianness = "<" if _byte_order(dimensions, name) == "little" else ">"
    # unchecked: nibabel would refuse headers that are repaired below, with a note
    header = header_class(raw[:size], endianness=endianness, check=False)
    declared_size = int(header["sizeof_hdr"])
    if declared_size == size:
        return header, []
    return header, [f"header says its size is {declared_size} bytes; it is {size}"]


def _byte_order(dimensions: bytes, name: str) -> Literal["little", "big"]:
    """The byte order in which the number of dimensions is 1 to 7."""
    # the size of the header would tell it too, but some tools write another
    if 1 <= int.from_bytes(dimensions, "little") <= 7:
        return "little"
    if 1 <= int.from_bytes(dimensions, "big") <= 7:
        return "big"
    raise DataError(f"{name}: the header's number of dimensions is not 1 to 7; export it again")


def _layout(header: nib.Nifti1Header, name: str, notes: list[str]) -> _Layout:
    shape = _shape(header, name)
    dtype = _dtype(header, name, notes)
    offset = float(header["vox_offset"])
    # NaN fails the first comparison, infinity the second
    if not (offset >= header.single_vox_offset and offset.is_integer()):
        raise DataError(
            f"{name}: voxels cannot start at byte {offset:g} (vox_offset); export it again"
        )
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # 0 means no scaling; NaN is taken for it
        notes.append(f"slope {slope:g} taken as 1, intercept as 0")
        slope = 1.0
        intercept = 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError(
            f"{name}: slope {slope:g} and intercept {intercept:g} are not finite; export it again"
        )
    return _Layout(shape, dtype, int(offset), slope, intercept)


def _shape(header: nib.Nifti1Header, name: str) -> tuple[int, ...]:
    """Three or four lengths, without trailing axes of length 1."""
    dims = [int(length) for length in header["dim"][1 : int(header["dim"][0]) + 1]]
    if min(dims) < 1:
        raise DataError(
            f"{name}: dimensions {tuple(dims)} in the header are not all positive; export it again"
        )
    # many tools write a fourth axis of length 1
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) > 4:
        raise DataError(
            f"{name}: has {len(dims)} dimensions {tuple(dims)}; "
            "save one 3D volume, or 4D with channels last"
        )
    # a plane becomes a single slice, which is refused later with a remedy
    dims += [1] * (3 - len(dims))
    return tuple(dims)


def _dtype(header: nib.Nifti1Header, name: str, notes: list[str]) -> np.dtype:
    code = int(header["datatype"])
    if code not in _DTYPES:
        reason = _REFUSED_DTYPES.get(code, f"unknown voxel type {code}; export it again")
        raise DataError(f"{name}: {reason}")
    dtype = np.dtype(_DTYPES[code]).newbyteorder(header.endianness)
    bits = 8 * dtype.itemsize
    if int(header["bitpix"]) != bits:
        notes.append(
            f"header says {int(header['bitpix'])} bits per voxel; its type {dtype.name} has {bits}"
        )
    return dtype


def _check_size(end: int, size: int, packed: bool, limit: int, name: str) -> None:
    """Refuse a file of `size` bytes that cannot have `end` bytes of header and voxels."""
    if end > limit:
        raise DataError(
            f"{name}: its header asks for {end / 1e9:.1f} GB, more than {limit / 1e9:g}; "
            "crop or resample it"
        )
    if packed and size * DEFLATE_RATIO < end:
        # known before any of it is unpacked
        raise DataError(
            f"{name}: {size} bytes cannot unpack to the {end} that its header asks for; "
            "copy it again from its source"
        )
    if not packed and size < end:
        raise DataError(
            f"{name}: has {size} bytes where its header asks for {end}; "
            "copy it again from its source"
        )
    if size > end + end // 100 + _PADDING_BYTES:  # deflate adds at most a thousandth
        raise DataError(
            f"{name}: {size} bytes are more than its header accounts for ({end}); export it again"
        )
    check_memory(name, end)


def _contents(content: bytes, end: int, packed: bool, name: str) -> bytes:
    """Header and voxels, unpacked."""
    if packed:
        content = _inflate(content, end, name)
    if len(content) < end:
        raise DataError(
            f"{name}: has {len(content)} bytes where its header asks for {end}; copy it again"
        )
    if len(content) > end and content[end:].strip(b"\0"):
        raise DataError(
            f"{name}: more data after the voxels than its header accounts for; export it again"
        )
    return content


def _inflate(packed: bytes, end: int, name: str) -> bytes:
    """Unpack to the end of the stream, where its checksum and length are; never far past `end`."""
    inflate = isal_zlib.decompressobj(31)
    try:
        content = inflate.decompress(packed, end + _PADDING_BYTES)
    except INFLATE_ERRORS as error:
        raise DataError(
            f"{name}: damaged gzip stream ({_reason(error)}); copy it again from its source"
        ) from error
    if not inflate.eof and len(content) < end + _PADDING_BYTES:
        raise DataError(f"{name}: the gzip stream is cut; copy it again from its source")
    if inflate.unused_data.strip(b"\0"):
        raise DataError(
            f"{name}: more data after the end of the gzip stream; "
            "unpack and pack it again with gzip"
        )
    if not inflate.eof:
        raise DataError(f"{name}: unpacks to more than its header accounts for; export it again")
    return content


def _scale(stored: np.ndarray, layout: _Layout) -> np.ndarray:
    """Native byte order, slope and intercept applied; the same memory where neither is needed."""
    if layout.slope == 1 and layout.intercept == 0:
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    # 24 bits of float32 have room for 16 and their scaling
    exact_in_float32 = stored.dtype.itemsize <= 2 or stored.dtype.type is np.float32
    scaled = stored.astype(np.float32 if exact_in_float32 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the finite check that follows reports it
        np.multiply(scaled, layout.slope, out=scaled)
        np.add(scaled, layout.intercept, out=scaled)
    return scaled


def _affine(
    header: nib.Nifti1Header, shape: tuple[int, ...], name: str, notes: list[str]
) -> np.ndarray:
    """The affine in mm, whatever the unit of the header."""
    affine = _affine_in_its_unit(header, shape, name, notes)
    # the lowest three bits are the unit of lengths, the others that of time
    unit, mm = _UNITS_MM.get(int(header["xyzt_units"]) & 7, ("millimetre", 1.0))
    if mm == 1:
        return affine
    affine[:3] *= mm
    notes.append(f"header's unit is the {unit}, converted to mm{voxel_edges(affine)}")
    return affine


def _affine_in_its_unit(
    header: nib.Nifti1Header, shape: tuple[int, ...], name: str, notes: list[str]
) -> np.ndarray:
    """sform, else qform, else voxel sizes about the centre; disagreement and repairs are noted."""
    _repair_voxel_sizes(header, name, notes)
    sform = _sform(header, name, notes)
    qform, flaw = _qform(header)
    # the sform first, as in nibabel
    if sform is not None:
        note = flaw or _disagreement(sform, qform, shape, header)
        if note:
            notes.append(f"{note}; the sform is used")
        return np.array(sform, np.float64)
    if flaw:
        raise DataError(f"{name}: {flaw} and there is no sform; export it again")
    if qform is not None:
        return np.array(qform, np.float64)
    notes.append("neither sform nor qform: orientation unknown, left and right may be swapped")
    # method 1 of the standard
    return np.array(header.get_base_affine(), np.float64)


def _repair_voxel_sizes(header: nib.Nifti1Header, name: str, notes: list[str]) -> None:
    """Make the voxel sizes positive or 0, and the qform's handedness 1 or -1."""
    pixdim = header["pixdim"]
    if not np.isfinite(pixdim[1:4]).all():
        raise DataError(
            f"{name}: voxel sizes {tuple(map(float, pixdim[1:4]))} in the header; export it again"
        )
    # the standard reads 0 as 1
    if int(header["qform_code"]) > 0 and pixdim[0] not in (-1, 1):
        pixdim[0] = -1 if pixdim[0] < 0 else 1
    if (pixdim[1:4] < 0).any():
        notes.append("negative voxel sizes in the header taken as positive")
        pixdim[1:4] = abs(pixdim[1:4])


def _sform(header: nib.Nifti1Header, name: str, notes: list[str]) -> np.ndarray | None:
    """The sform where it is declared; it also gives voxel sizes that are 0 in the header."""
    pixdim = header["pixdim"]
    sform: np.ndarray | None = None
    if int(header["sform_code"]) > 0:
        sform = header.get_sform()
        if not is_usable_affine(sform):
            raise DataError(
                f"{name}: the sform is no usable affine (not finite, or flat); export it again"
            )
        if (pixdim[1:4] == 0).any():
            notes.append("voxel size 0 in the header; taken from the sform")
            pixdim[1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if (pixdim[1:4] == 0).any():
        raise DataError(
            f"{name}: voxel size 0 in the header and no sform to give it; export it again"
        )
    return sform


def _qform(header: nib.Nifti1Header) -> tuple[np.ndarray | None, str]:
    """The qform where it is declared and usable, and what is wrong with it."""
    if int(header["qform_code"]) <= 0:
        return None, ""
    flaw = "the qform's quaternion or offset is impossible"
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError):
        return None, flaw
    return (qform, "") if is_usable_affine(qform) else (None, flaw)


def _disagreement(
    sform: np.ndarray,
    qform: np.ndarray | None,
    shape: tuple[int, ...],
    header: nib.Nifti1Header,
) -> str:
    """How far sform and qform are apart, where that is more than a tenth of a voxel; else ""."""
    if qform is None:
        return ""
    distance = max_corner_distance_mm(sform, qform, shape)
    if distance <= 0.1 * header["pixdim"][1:4].min():
        return ""
    return f"sform and qform disagree by up to {distance:.3g} mm"


def _reason(error: Exception) -> str:
    """The message of isal without its leading error number."""
    return str(error).partition(" ")[2].partition(" ")[2].lower() or "ends early"
