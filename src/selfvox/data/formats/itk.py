"""NRRD and MetaImage files through SimpleITK, after checking their size against the text header."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib

from selfvox.data.formats.volume import (
    DEFLATE_RATIO,
    INFLATE_ERRORS,
    LIMIT_BYTES,
    LPS_TO_RAS,
    Volume,
    check_memory,
    is_usable_affine,
    voxel_edges,
)
from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.safe_open import open_regular

WRITTEN_SUFFIXES = (".nrrd", ".mha")
_HEADER_BYTES = 2**20  # a text header has some kilobytes
# 16 more than the largest window: a gzip header is expected
_GZIP = 31  # zlib's window bits
_ZLIB = 15
# names of voxel types in MetaImage (without MET_) and NRRD headers, by their bytes
_TYPE_NAMES = {
    1: "char, uchar, signed char, unsigned char, int8, uint8, int8_t, uint8_t",
    2: "short, ushort, signed short, unsigned short, int16, uint16, int16_t, uint16_t",
    4: "int, uint, signed int, unsigned int, int32, uint32, int32_t, uint32_t, float",
    8: "long, ulong, long_long, ulong_long, long long, unsigned long long, longlong, ulonglong, "
    "int64, uint64, int64_t, uint64_t, double",
}
_TYPE_BYTES = {name: size for size, names in _TYPE_NAMES.items() for name in names.split(", ")}

# units of lengths without a final s, in mm
_UNITS_MM = {
    "": 1.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "millimetre": 1.0,
    "cm": 10.0,
    "centimeter": 10.0,
    "centimetre": 10.0,
    "m": 1000.0,
    "meter": 1000.0,
    "metre": 1000.0,
    "um": 1e-3,
    "\N{MICRO SIGN}m": 1e-3,
    "\N{GREEK SMALL LETTER MU}m": 1e-3,
    "micron": 1e-3,
    "micrometer": 1e-3,
    "micrometre": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "nanometre": 1e-6,
}


class _Promise(NamedTuple):
    """The voxels that the text header promises."""

    expected: int  # bytes of voxels, unpacked
    wbits: int | None  # zlib's window bits of packed voxels, which tell gzip from zlib
    detached: str | None  # name of another file with the voxels, in the same folder
    offset: int  # where the voxels start in this file
    mm: float  # of the unit of lengths
    notes: tuple[str, ...]  # on a geometry that the header leaves open


def read_itk(path: Path, limit_bytes: int = LIMIT_BYTES) -> Volume:
    """Read `.nrrd`, `.nhdr`, `.mha` or `.mhd`.

    ITK's left-posterior-superior world becomes right-anterior-superior.

    Raises:
        DataError: the file is damaged, cut, too large, or of a kind that SimpleITK reads unsafely.
    """
    name = printable(path.name)
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    with open_regular(path) as file:
        promise = _promise(file, is_nrrd, name)
        if promise.detached is None:
            _check_voxels(file, promise, limit_bytes, name)
    if promise.detached is not None:
        # a path could lead to any file of this machine
        if Path(promise.detached).name != promise.detached or promise.detached in ("", ".", ".."):
            raise DataError(
                f"{name}: the name of its voxel file is not plain; "
                "put both files in one folder and name the voxel file without a folder"
            )
        with open_regular(path.parent / promise.detached) as file:
            _check_voxels(file, promise, limit_bytes, name)
    import SimpleITK  # only here: few data sets have such files

    try:
        # the reader is named, since SimpleITK only recognises MetaImage by endings in lower case
        image = SimpleITK.ReadImage(str(path), imageIO="NrrdImageIO" if is_nrrd else "MetaImageIO")
        voxels = SimpleITK.GetArrayFromImage(image)
    except RuntimeError as error:
        raise DataError(
            f"{name}: SimpleITK cannot read it; export it again, best as .nii.gz"
        ) from error
    if image.GetDimension() != 3 or voxels.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: {image.GetDimension()}D {image.GetPixelIDTypeAsString()}; "
            "save a 3D volume of real numbers"
        )
    if voxels.nbytes != promise.expected:
        raise DataError(
            f"{name}: SimpleITK reads {voxels.nbytes} bytes of voxels, "
            f"the header says {promise.expected}; export it again"
        )
    affine = _affine(image, promise, name)
    notes = promise.notes
    if promise.mm != 1:
        notes = (*notes, f"the unit of its header is converted to mm{voxel_edges(affine)}")
    # SimpleITK gives z, y, x and then the values of a voxel
    return Volume(voxels.transpose(2, 1, 0, *range(3, voxels.ndim)), affine, None, notes)


def write_itk(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (x, y, z) as NRRD or MetaImage, compressed.

    Its geometry has double precision, unlike that of NIfTI: filters of SimpleITK accept it together
    with a scan of the same affine.
    """
    import SimpleITK  # only here: few data sets have such files

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    to_lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
    with atomic_write(path) as temporary:
        SimpleITK.WriteImage(image, str(temporary), useCompression=True)


def read_affine(path: Path) -> np.ndarray:
    """The affine (4, 4) of a file, voxel -> mm in RAS+, from its header alone.

    Raises:
        DataError: the header cannot be read, or gives no usable affine.
    """
    name = printable(path.name)
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    with open_regular(path) as file:
        promise = _promise(file, is_nrrd, name)
    import SimpleITK  # only here: few data sets have such files

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(
            f"{name}: SimpleITK cannot read it; export it again, best as .nii.gz"
        ) from error
    if reader.GetDimension() != 3:
        raise DataError(f"{name}: has {reader.GetDimension()} axes; save a 3D volume")
    return _affine(reader, promise, name)


def _affine(image: Any, promise: _Promise, name: str) -> np.ndarray:
    affine = np.eye(4)
    # each column is a direction, as long as a voxel
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    # SimpleITK takes all numbers for mm
    affine[:3] *= promise.mm
    if not is_usable_affine(affine):
        raise DataError(
            f"{name}: its directions or spacings give no usable affine; export it again"
        )
    return LPS_TO_RAS @ affine


def _promise(file: BinaryIO, is_nrrd: bool, name: str) -> _Promise:
    return _nrrd_promise(file, name) if is_nrrd else _meta_promise(file, name)


def _meta_promise(file: BinaryIO, name: str) -> _Promise:
    """Lines `Key = value` or `Key: value`, ending with ElementDataFile."""
    fields: dict[str, str] = {}
    for line in _lines(file, name):
        key, *value = (text.strip() for text in re.split("[=:]", line, maxsplit=1))
        if not value:
            raise DataError(f"{name}: not a MetaImage file; export it again")
        # the first of two may be checked here and the second obeyed by SimpleITK
        if key in fields:
            raise DataError(
                f"{name}: its MetaImage header says {printable(key[:40])} twice; export it again"
            )
        fields[key] = value[0]
        if key == "ElementDataFile":
            break
    # with more dimensions than it has room for, SimpleITK writes beyond its memory
    if fields.get("NDims", "3") != "3":
        raise DataError(
            f"{name}: {printable(fields['NDims'][:20])}D; save a 3D volume of real numbers"
        )
    try:
        voxel_bytes = _TYPE_BYTES[fields["ElementType"].removeprefix("MET_").lower()]
        frames = int(fields.get("ElementNumberOfChannels", "1"))
        expected = _voxel_count(fields["DimSize"]) * voxel_bytes * frames
        data_file = fields["ElementDataFile"]
        foreign_bytes = int(fields.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name}: the MetaImage header lacks a usable {error}; export it again"
        ) from error
    if fields.get("BinaryData", "True").lower() != "true" or _names_several_files(data_file):
        raise DataError(
            f"{name}: text voxels or voxels spread over several files; "
            "save it as one .mha or .nii.gz"
        )
    if foreign_bytes != 0:
        raise DataError(
            f"{name}: voxels after a foreign header (HeaderSize); save it as one .mha or .nii.gz"
        )
    packed = fields.get("CompressedData", "False").lower() == "true"
    detached = None if data_file.upper() == "LOCAL" else data_file.removeprefix("./")
    return _Promise(
        expected=expected,
        wbits=_ZLIB if packed else None,
        detached=detached,
        offset=file.tell(),
        mm=_unit_mm(fields.get("DistanceUnits", "mm"), name),
        notes=_geometry_notes(
            spacing=any(key in fields for key in ("ElementSpacing", "ElementSize")),
            directions=any(key in fields for key in ("TransformMatrix", "Rotation", "Orientation")),
            origin=any(key in fields for key in ("Offset", "Position", "Origin")),
        ),
    )


def _nrrd_promise(file: BinaryIO, name: str) -> _Promise:
    """Lines `key: value` after the magic, ending with an empty line."""
    lines = _lines(file, name)
    if not next(lines, "").startswith("NRRD000"):
        raise DataError(f"{name}: not an NRRD file (wrong magic bytes); export it again")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        key, colon, value = line.partition(":")
        # `key:=value` is metadata of the user's own
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    try:
        expected = _voxel_count(fields["sizes"]) * _TYPE_BYTES[fields["type"].lower()]
        wbits = {"raw": None, "gzip": _GZIP, "gz": _GZIP}[fields["encoding"].lower()]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name}: its NRRD header has no usable {error} (raw and gzip are read); "
            "export it again"
        ) from error
    skips = ("line skip", "byte skip", "lineskip", "byteskip")
    if any(fields.get(key, "0") != "0" for key in skips):
        raise DataError(
            f"{name}: voxels after a foreign header (line or byte skip); "
            "save it as one .nrrd or .nii.gz"
        )
    detached = fields.get("data file", fields.get("datafile"))
    detached = None if detached is None else detached.removeprefix("./")
    if detached is not None and _names_several_files(detached):
        raise DataError(
            f"{name}: voxels spread over several files; save it as one .nrrd or .nii.gz"
        )
    units = re.findall(r'"([^"]*)"', fields.get("space units", "")) or ["mm"]
    if len(set(units)) > 1:
        raise DataError(f"{name}: its axes have different units; export it again, in mm")
    return _Promise(
        expected=expected,
        wbits=wbits,
        detached=detached,
        offset=file.tell(),
        mm=_unit_mm(units[0], name),
        notes=_geometry_notes(
            spacing="space directions" in fields or "spacings" in fields,
            directions="space directions" in fields
            and ("space" in fields or "space dimension" in fields),
            origin="space origin" in fields,
        ),
    )


def _unit_mm(unit: str, name: str) -> float:
    """How many mm a unit of lengths is.

    Raises:
        DataError: it is none.
    """
    mm = _UNITS_MM.get(unit.strip().lower().rstrip("s"))
    if mm is None:
        raise DataError(
            f"{name}: its lengths are in '{printable(unit[:20])}', which is no known unit; "
            "export it again, in mm"
        )
    return mm


def _geometry_notes(spacing: bool, directions: bool, origin: bool) -> tuple[str, ...]:
    """What the header leaves open, as SimpleITK fills it in."""
    notes = []
    if not spacing:
        notes.append("no spacing in its header: voxels of 1 mm are assumed")
    if not directions:
        notes.append("no directions in its header: left and right may be swapped")
    if not origin:
        notes.append("no origin in its header: its position is unknown")
    return tuple(notes)


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    while line := file.readline(_HEADER_BYTES):
        if file.tell() > _HEADER_BYTES:
            raise DataError(f"{name}: its text header has no end; copy it again from its source")
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def _names_several_files(data_file: str) -> bool:
    """`LIST`, followed by names, or a pattern such as `slice%03d.raw`."""
    return data_file.upper().startswith("LIST") or "%" in data_file


def _voxel_count(sizes: str) -> int:
    """The product of a line of lengths, in Python integers, which cannot overflow."""
    count = 1
    for length in map(int, sizes.split()):
        if length < 1:
            raise ValueError("size")
        count *= length
    return count


def _check_voxels(file: BinaryIO, promise: _Promise, limit: int, name: str) -> None:
    """The bytes of voxels in the file, unpacked to the end, are those promised."""
    start = promise.offset if promise.detached is None else 0
    size = os.fstat(file.fileno()).st_size - start
    if promise.expected > limit:
        raise DataError(
            f"{name}: its header asks for {promise.expected / 1e9:.1f} GB, "
            f"more than {limit / 1e9:g}; crop it"
        )
    if promise.wbits is not None:
        file.seek(start)
        _check_packed(file, promise.expected, promise.wbits, size, name)
    elif size != promise.expected:
        raise DataError(
            f"{name}: has {size} bytes of voxels where its header asks for {promise.expected}; "
            "copy it again"
        )
    check_memory(name, promise.expected)


def _check_packed(file: BinaryIO, expected: int, wbits: int, size: int, name: str) -> None:
    """The rest of the file, `size` bytes, unpacks to `expected` bytes and ends there."""
    # known before any of it is unpacked
    if expected > DEFLATE_RATIO * size:
        raise DataError(
            f"{name}: {size} bytes cannot unpack to the {expected} that its header asks for; "
            "copy it again from its source"
        )
    if size > expected + expected // 100 + 2**16:  # deflate adds at most a thousandth
        raise DataError(
            f"{name}: {size} bytes are more than its header accounts for; export it again"
        )
    inflate = isal_zlib.decompressobj(wbits)
    try:
        # one byte more shows a surplus without unpacking all of it
        unpacked = len(inflate.decompress(file.read(), expected + 1))
    except INFLATE_ERRORS as error:
        raise DataError(
            f"{name}: damaged compressed voxels; copy it again from its source"
        ) from error
    if unpacked != expected or not inflate.eof:
        raise DataError(
            f"{name}: its compressed voxels are cut or too many; copy it again from its source"
        )
