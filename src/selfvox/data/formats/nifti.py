"""NIfTI files: the header is checked before memory is allocated, the bytes before they are used."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import isal_zlib

from selfvox.data.formats.label_table import NO_EXTENSION
from selfvox.data.formats.nifti_affine import header_affine
from selfvox.data.formats.nifti_header import NIFTI2_BYTES, Layout, parse_header, read_layout
from selfvox.data.formats.volume import (
    DEFLATE_RATIO,
    INFLATE_ERRORS,
    LIMIT_BYTES,
    Volume,
    check_memory,
)
from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_bytes
from selfvox.runs.safe_open import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 2**12
_START_BYTES = 2**17  # read first, to judge the header before the rest is read
_PADDING_BYTES = 2**16  # zeros that may follow the voxels

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
        header, notes = parse_header(_first_bytes(start, packed, name), name)
        layout = read_layout(header, name, notes)
        _check_size(layout.end, size, packed, limit_bytes, name)
        affine = header_affine(header, layout.shape, name, notes)
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
    header, notes = parse_header(_first_bytes(start, packed, name), name)
    layout = read_layout(header, name, notes)
    return header_affine(header, layout.shape, name, notes)


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
    write_bytes(path, content)


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
        return isal_zlib.decompressobj(31).decompress(start, NIFTI2_BYTES)
    except INFLATE_ERRORS as error:
        raise DataError(
            f"{name}: damaged gzip stream ({_reason(error)}); copy it again from its source"
        ) from error


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


def _scale(stored: np.ndarray, layout: Layout) -> np.ndarray:
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


def _reason(error: Exception) -> str:
    """The message of isal without its leading error number."""
    return str(error).partition(" ")[2].partition(" ")[2].lower() or "ends early"
