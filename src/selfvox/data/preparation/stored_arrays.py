"""Arrays of a store: plain `.npy` files, checked against their case and mapped into memory."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import numpy as np

from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.runs.safe_open import open_regular

# the types that arrays of each kind may have
_DTYPES = {
    "images": (np.dtype("<f2"),),
    "labels": (np.dtype("|u1"), np.dtype("<u2")),
    "foreground": (np.dtype("<i4"),),
}


class StoredArray:
    """An array that is read when it is used; its file stays open.

    Args:
        path: of the store.
        case: the case.
        kind: images, labels or foreground.
        channels: of the images.
        check: compare the file's SHA-256 first.

    Raises:
        DataError: the file is missing, no regular file, damaged, or not the array of such a case;
            the message says how to prepare it again.
    """

    def __init__(self, path: Path, case: StoredCase, kind: str, *, channels: int, check: bool):
        if kind not in case.sha256:
            raise DataError(f"{path}: case {case.id} has no {kind}; use a labelled case")
        self.file = path / kind / f"{case.id}.npy"
        self.case = case
        self._remedy = (
            f"run `selfvox prepare SCANS --out {path}` again, it repairs the damaged cases"
        )
        try:
            self._map(kind, channels, case.sha256[kind] if check else None)
        # numpy raises many kinds of errors for a header that no program of good will writes
        except Exception as error:
            raise self._damaged(str(error)) from None

    @property
    def values(self) -> np.ndarray:
        """The mapped array.

        Raises:
            DataError: the file was truncated since it was opened. To read beyond its end would
                end the process by SIGBUS.
        """
        if self._mapped.size() < len(self._mapped):
            raise self._damaged("it was truncated")
        return self._values

    def _map(self, kind: str, channels: int, digest: str | None) -> None:
        with open_regular(self.file) as file:
            if digest is not None and hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError("its SHA-256 differs")
            file.seek(0)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its header is of another version")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
            fits = shape == self._shape(kind, channels, rows=shape[:1])
            if is_fortran or dtype not in _DTYPES[kind] or not fits:
                raise ValueError(f"its header says {dtype} of shape {shape}")
            count = int(np.prod(shape, dtype=object))
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._mapped) != begin + count * dtype.itemsize:
            raise ValueError("its size does not fit its header")
        self._values = np.frombuffer(self._mapped, dtype, count, begin).reshape(shape)

    def _shape(self, kind: str, channels: int, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an array of this kind; `rows` of the foreground, which has any number."""
        if kind == "foreground":
            return (*rows, 1 + len(self.case.shape))
        return (channels, *self.case.shape) if kind == "images" else self.case.shape

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.file}: case {self.case.id} is damaged ({reason}); {self._remedy}")
