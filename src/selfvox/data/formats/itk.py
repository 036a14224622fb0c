"""NRRD and MetaImage files through SimpleITK, after checking that the file holds what its text header promises."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK
from isal import isal_zlib

from selfvox.data.formats.nifti import DAMAGED, HARMLESS_BYTES, LIMIT_BYTES, LIMIT_RATIO, Volume
from selfvox.data.formats.safe_open import open_regular
from selfvox.data.naming import printable
from selfvox.errors import DataError

_HEADER_BYTES = 2**20
_BYTES = {
    "char": 1,
    "uchar": 1,
    "short": 2,
    "ushort": 2,
    "int": 4,
    "uint": 4,
    "float": 4,
    "double": 8,
}
_BYTES |= {"long_long": 8, "ulong_long": 8, "long": 8, "ulong": 8}
_BYTES |= {
    "signed char": 1,
    "unsigned char": 1,
    "int8": 1,
    "uint8": 1,
    "unsigned short": 2,
    "int16": 2,
    "uint16": 2,
}
_BYTES |= {
    "unsigned int": 4,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "long long": 8,
    "unsigned long long": 8,
}
_BYTES |= {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}
_BYTES |= {
    "int64_t": 8,
    "uint64_t": 8,
    "signed short": 2,
    "signed int": 4,
    "longlong": 8,
    "ulonglong": 8,
}


class _Promise(NamedTuple):
    """What the text header says."""

    expected: int  # bytes of voxels
    wbits: int | None  # 31 gzip, 15 zlib, None as they are
    detached: str | None  # another file with the voxels, in the same folder
    offset: int  # where the voxels start in this file


def read_itk(path: Path, limit_bytes: int = LIMIT_BYTES) -> Volume:
    """Read `.nrrd`, `.nhdr`, `.mha` or `.mhd`; ITK's left-posterior-superior world becomes right-anterior-superior.

    Raises:
        DataError: the file is damaged, cut, too large, or of a kind that SimpleITK cannot be trusted with.
    """
    name = printable(path.name)
    nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    with open_regular(path) as file:
        promise = _nrrd(file, name) if nrrd else _meta(file, name)
        if promise.detached is None:
            _check_voxels(file, promise, limit_bytes, name)
    if promise.detached is not None:
        if Path(promise.detached).name != promise.detached or promise.detached in ("", ".", ".."):
            raise DataError(
                f"{name}: its voxel file is not named plainly; keep it beside the header, named without folder"
            )
        with open_regular(path.parent / promise.detached) as file:
            _check_voxels(file, promise, limit_bytes, name)
    try:
        # named, since SimpleITK knows MetaImage by its ending in lower case alone
        image = SimpleITK.ReadImage(str(path), imageIO="NrrdImageIO" if nrrd else "MetaImageIO")
        spacing, origin, direction = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
        voxels = SimpleITK.GetArrayFromImage(image)
    except RuntimeError as error:
        raise DataError(
            f"{name}: SimpleITK cannot read it; export it again, best as .nii.gz"
        ) from error
    if image.GetDimension() != 3 or voxels.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: {image.GetDimension()}D {image.GetPixelIDTypeAsString()}; save a 3D volume of real numbers"
        )
    if voxels.nbytes != promise.expected:
        raise DataError(
            f"{name}: SimpleITK found {voxels.nbytes} bytes of voxels, the header says {promise.expected}"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * spacing
    affine[:3, 3] = origin
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod()
    ):
        raise DataError(
            f"{name}: its directions or spacings give no usable affine; export it again"
        )
    # SimpleITK gives z, y, x and then the values of a voxel
    return Volume(voxels.transpose(2, 1, 0, *range(3, voxels.ndim)), affine, None, ())


def _meta(file: BinaryIO, name: str) -> _Promise:
    """Lines `Key = value` or `Key: value`, ending with ElementDataFile."""
    fields: dict[str, str] = {}
    for line in _lines(file, name):
        key, *value = (part.strip() for part in re.split("[=:]", line, maxsplit=1))
        if not value:
            raise DataError(f"{name}: not a MetaImage file; export it again")
        if key in fields:
            raise DataError(
                f"{name}: its MetaImage header says {printable(key[:40])} twice; export it again"
            )
        fields[key] = value[0]
        if key == "ElementDataFile":
            break
    # of so many dimensions as it has no room for, SimpleITK writes over other memory
    if fields.get("NDims", "3") != "3":
        raise DataError(
            f"{name}: {printable(fields['NDims'][:20])}D; save a 3D volume of real numbers"
        )
    try:
        kind = _BYTES[fields["ElementType"].removeprefix("MET_").lower()]
        frames = int(fields.get("ElementNumberOfChannels", "1"))
        expected = _product([int(n) for n in fields["DimSize"].split()]) * kind * frames
        where = fields["ElementDataFile"]
        foreign = int(fields.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name}: the MetaImage header lacks a usable {error}; export it again"
        ) from error
    if (
        fields.get("BinaryData", "True").lower() != "true"
        or where.upper().startswith("LIST")
        or "%" in where
    ):
        raise DataError(
            f"{name}: text voxels or voxels spread over several files; save it as one .mha or .nii.gz"
        )
    if foreign != 0:
        raise DataError(
            f"{name}: voxels after a foreign header (HeaderSize); save it as one .mha or .nii.gz"
        )
    wbits = 15 if fields.get("CompressedData", "False").lower() == "true" else None
    return _Promise(expected, wbits, None if where.upper() == "LOCAL" else where, file.tell())


def _nrrd(file: BinaryIO, name: str) -> _Promise:
    """Lines `key: value` after the magic, ending with an empty line."""
    lines = _lines(file, name)
    if not next(lines, "").startswith("NRRD000"):
        raise DataError(f"{name}: not an NRRD file (wrong magic bytes); export it again")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    try:
        expected = (
            _product([int(n) for n in fields["sizes"].split()]) * _BYTES[fields["type"].lower()]
        )
        wbits = {"raw": None, "gzip": 31, "gz": 31}[fields["encoding"].lower()]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name}: its NRRD header has no usable {error} (raw and gzip are read); export it again"
        ) from error
    if any(
        fields.get(key, "0") != "0" for key in ("line skip", "byte skip", "lineskip", "byteskip")
    ):
        raise DataError(
            f"{name}: voxels after a foreign header (line or byte skip); save it as one .nrrd or .nii.gz"
        )
    detached = fields.get("data file", fields.get("datafile"))
    if detached is not None and (detached.upper().startswith("LIST") or "%" in detached):
        raise DataError(
            f"{name}: voxels spread over several files; save it as one .nrrd or .nii.gz"
        )
    return _Promise(expected, wbits, detached, file.tell())


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    while line := file.readline(_HEADER_BYTES):
        if file.tell() > _HEADER_BYTES:
            raise DataError(f"{name}: its text header has no end; copy it again from its source")
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def _product(sizes: list[int]) -> int:
    product = 1
    for size in sizes:
        if size < 1:
            raise ValueError("size")
        product *= size
    return product


def _check_voxels(file: BinaryIO, promise: _Promise, limit: int, name: str) -> None:
    """The bytes of voxels that are there, unpacked to the end, equal those promised."""
    start = promise.offset if promise.detached is None else 0
    size = os.fstat(file.fileno()).st_size - start
    if promise.expected > limit:
        raise DataError(
            f"{name}: its header asks for {promise.expected / 1e9:.1f} GB, more than {limit / 1e9:g}; crop it"
        )
    if promise.wbits is None:
        if size != promise.expected:
            raise DataError(
                f"{name}: holds {size} bytes of voxels where its header asks for {promise.expected}; copy it again"
            )
        return
    if promise.expected > HARMLESS_BYTES and promise.expected > LIMIT_RATIO * size:
        raise DataError(
            f"{name}: would grow {promise.expected // size} fold (limit {LIMIT_RATIO}); save it uncompressed"
        )
    if size > promise.expected + promise.expected // 100 + 2**16:
        raise DataError(
            f"{name}: {size} bytes are more than its header accounts for; export it again"
        )
    file.seek(start)
    inflate = isal_zlib.decompressobj(promise.wbits)
    try:
        found = len(inflate.decompress(file.read(), promise.expected + 1))
    except DAMAGED as error:
        raise DataError(
            f"{name}: damaged compressed voxels; copy it again from its source"
        ) from error
    if found != promise.expected or not inflate.eof:
        raise DataError(
            f"{name}: its compressed voxels are cut or too many; copy it again from its source"
        )
