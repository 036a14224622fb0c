"""Columns of numbers and of texts in a safetensors file, mapped into memory.

The texts of a column are one after the other in `NAME.text`, and `NAME.starts` says where each
starts. Processes share the pages that they read.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from selfvox.runs.atomic_files import atomic_write, sha256

_MOST_HEADER_BYTES = 100_000
_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("<u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Texts:
    """The texts of a column."""

    starts: np.ndarray  # of each text, and the end of the last: int64 (n + 1,)
    content: np.ndarray  # UTF-8, uint8

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The column of these texts."""
        encoded = [text.encode() for text in texts]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(starts, np.frombuffer(b"".join(encoded), np.uint8))

    @classmethod
    def take(cls, arrays: dict[str, np.ndarray], name: str) -> Texts:
        """The column of this name, which is removed from the arrays of a file.

        Raises:
            KeyError: it is missing.
        """
        return cls(arrays.pop(f"{name}.starts"), arrays.pop(f"{name}.text"))

    def check(self, count: int) -> None:
        """Refuse what is no column of so many texts.

        Raises:
            ValueError: it is not.
        """
        if self.starts.dtype != np.int64 or self.content.dtype != np.uint8:
            raise ValueError("it has texts of another type")
        if self.starts.shape != (count + 1,) or self.content.ndim != 1 or self.starts[0] != 0:
            raise ValueError(f"it has texts that are not those of {count}")
        if (np.diff(self.starts) < 0).any() or self.starts[-1] != len(self.content):
            raise ValueError("it has texts that are outside of their column")

    def __getitem__(self, row: int) -> str:
        return self.content[self.starts[row] : self.starts[row + 1]].tobytes().decode()

    def to_list(self) -> list[str]:
        """All texts."""
        content = self.content.tobytes()
        ends = itertools.pairwise(self.starts.tolist())
        return [content[start:end].decode() for start, end in ends]


def write_columns(file: Path, numbers: Mapping[str, np.ndarray], texts: Mapping[str, Texts]) -> str:
    """Write columns, atomically.

    Returns:
        The SHA-256 of the file.
    """
    columns = dict(numbers)
    for name, column in texts.items():
        columns |= {f"{name}.starts": column.starts, f"{name}.text": column.content}
    with atomic_write(file) as temporary:
        # the library's own writer hides a full disk in a text
        temporary.write_bytes(safetensors.numpy.save(columns))
        return sha256(temporary)


def map_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, on its mapped pages.

    Raises:
        OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError: it is no such file.
    """
    # the library refuses a header that does not fit the file; its own arrays are copies
    with safetensors.safe_open(file, framework="numpy"), file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(mapped[:8], "little")
    if begin > _MOST_HEADER_BYTES:
        raise ValueError("its header is too large")
    arrays = {}
    for name, entry in json.loads(mapped[8:begin]).items():
        first = begin + entry["data_offsets"][0]
        count = math.prod(entry["shape"])
        values = np.frombuffer(mapped, _DTYPES[entry["dtype"]], count, first if count else 0)
        arrays[name] = values.reshape(entry["shape"])
    return arrays
