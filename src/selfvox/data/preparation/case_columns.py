"""The file of a store's cases: columns of numbers and of texts, mapped into memory.

`cases.safetensors` has a row for each case, in the natural order of their ids. What is looked at in
all cases at once has a column of its own; the rest of a case is one text, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from selfvox.data.preparation.stored_case import StoredCase, sort_cases
from selfvox.errors import DataError
from selfvox.runs import atomic_files
from selfvox.runs.mapped_columns import Texts, map_arrays, write_columns

FILE = "cases.safetensors"
STAMPS_FILE = "stamps.npy"
KINDS = ("images", "labels", "foreground")  # of arrays
NO_GRADE = np.iinfo(np.int64).min
SUBJECTS = "subjects"  # the name of each person; `subject` is the number of one of them
REST = "rest"
BY_AXIS = ("shape", "spacing_mm", "step")

NUMBERS: Mapping[str, tuple[type[np.generic], Callable[[StoredCase], Any]]] = {
    "shape": (np.int32, lambda case: case.shape),
    "spacing_mm": (np.float64, lambda case: case.spacing_mm),
    "step": (np.float64, lambda case: case.geometry.step),
    "has_label": (np.bool_, lambda case: case.has_label),
    "grade": (np.int64, lambda case: NO_GRADE if case.grade is None else case.grade),
}
TEXTS: Mapping[str, Callable[[StoredCase], str]] = {
    "id": lambda case: case.id,
    "source_hash": lambda case: case.source_hash,
    "image_hash": lambda case: case.image_hash,
    "array_hash": lambda case: case.sha256.get("images", ""),
    "coarse_picture": lambda case: case.coarse_picture,
}


@dataclass(frozen=True)
class CaseColumns:
    """The columns of all cases of a store."""

    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, Texts]
    # of the arrays, int64 (case, kind, 2): size in bytes and time in ns, -1 where there is no such
    # array; None: not known. In a file of their own, since two preparations of the same scans have
    # all else in common
    stamps: np.ndarray | None
    file: Path | None = None  # that they are mapped from; None: in memory
    identity: tuple[int, int, int] | None = None  # of the file: inode, size, time

    def __len__(self) -> int:
        return len(self.numbers["subject"])

    def __reduce__(self) -> tuple[Any, ...]:
        # a loader's worker maps the file itself
        if self.file is None:
            return CaseColumns, (self.numbers, self.texts, self.stamps)
        return _read_again, (self.file, self.identity, len(self), self.numbers["shape"].shape[1])

    @classmethod
    def of(cls, cases: Sequence[StoredCase]) -> CaseColumns:
        """The columns of at least one case, in the natural order of the ids."""
        ordered = sort_cases(cases)
        numbers = {
            name: np.array([value(case) for case in ordered], dtype=kind)
            for name, (kind, value) in NUMBERS.items()
        }
        names = dict.fromkeys(case.subject for case in ordered)
        people = {name: number for number, name in enumerate(names)}
        numbers["subject"] = np.array([people[case.subject] for case in ordered], np.int32)
        texts = {name: [text(case) for case in ordered] for name, text in TEXTS.items()}
        texts |= {SUBJECTS: list(people), REST: [_rest(case) for case in ordered]}
        stamps = [[case.stamps.get(kind, (-1, -1)) for kind in KINDS] for case in ordered]
        columns = {name: Texts.of(column) for name, column in texts.items()}
        return cls(numbers, columns, np.array(stamps, np.int64))

    @classmethod
    def read(cls, file: Path, count: int, axes: int) -> CaseColumns:
        """Map the columns of a file, and of the stamps next to it, where they are.

        Args:
            file: as `write` writes it; its checksum was compared.
            count: of its cases.
            axes: of each case.

        Raises:
            DataError: it has not the columns of such cases.
        """
        try:
            identity = _identity(file)
            arrays = map_arrays(file)
            texts = {name: Texts.take(arrays, name) for name in (*TEXTS, SUBJECTS, REST)}
            _check_columns(arrays, texts, count, axes)
        # a header of bad will has any value for any key
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{file}: damaged ({reason})") from None
        return cls(arrays, texts, _read_stamps(file.with_name(STAMPS_FILE), count), file, identity)

    def write(self, file: Path) -> str:
        """Write the columns and next to them the stamps, atomically.

        Returns:
            The SHA-256 of the file of the columns.
        """
        if self.stamps is not None:
            # without them arrays are hashed when they are used
            stamps = file.with_name(STAMPS_FILE)
            with atomic_files.atomic_write(stamps, sync_file=False) as temporary:
                np.save(temporary, self.stamps, allow_pickle=False)
        return write_columns(file, self.numbers, self.texts)


def _rest(case: StoredCase) -> str:
    """What has no column, as JSON."""
    values = case.to_dict()
    for name in (*NUMBERS.keys() - {"step"}, *TEXTS.keys() - {"array_hash"}, "subject", "stamps"):
        del values[name]
    del values["trail"]["step"]
    # the shape
    del values["trail"]["prepared"]
    values["sha256"].pop("images", None)
    return json.dumps(values, allow_nan=False, separators=(",", ":"))


def _check_columns(
    numbers: Mapping[str, np.ndarray], texts: Mapping[str, Texts], count: int, axes: int
) -> None:
    """Refuse columns that are not of such cases.

    Raises:
        ValueError: the first of them.
    """
    kinds = {name: kind for name, (kind, _) in NUMBERS.items()} | {"subject": np.int32}
    for name, kind in kinds.items():
        values = numbers[name]
        shape = (count, axes) if name in BY_AXIS else (count,)
        if values.dtype != kind or values.shape != shape:
            raise ValueError(f"'{name}' is {values.dtype} of shape {values.shape}")
    for name in BY_AXIS:
        if not ((numbers[name] > 0) & (numbers[name] < 2**31)).all():
            raise ValueError(f"'{name}' has values that no scan has")
    people = len(texts[SUBJECTS].starts) - 1
    if not ((numbers["subject"] >= 0) & (numbers["subject"] < people)).all():
        raise ValueError("'subject' has numbers of no person")
    for name, column in texts.items():
        column.check(people if name == SUBJECTS else count)


def _read_stamps(file: Path, count: int) -> np.ndarray | None:
    """The stamps; None where there are none of so many cases."""
    try:
        stamps = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    is_fitting = stamps.dtype == np.int64 and stamps.shape == (count, len(KINDS), 2)
    return stamps if is_fitting else None


def _identity(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read_again(file: Path, identity: tuple[int, int, int], count: int, axes: int) -> CaseColumns:
    """The columns in another process.

    Raises:
        DataError: the file was replaced since it was opened.
    """
    if _identity(file) != identity:
        raise DataError(f"{file}: was written again since it was opened; run the command again")
    return CaseColumns.read(file, count, axes)
