"""Atomic files: written to a temporary file, fsynced, renamed."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from selfvox.errors import BusyError, ResourceError
from selfvox.runs.safe_open import open_regular

# a spreadsheet evaluates cells that begin like this
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; afterwards fsync it and rename it to `path`.

    After an error the temporary file is removed and `path` stays as it was. The temporary name
    ends like `path`, since many writers choose the format by the ending.

    Raises:
        ResourceError: the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        # the new name is an entry of the folder, which has to reach the disk too
        _fsync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            raise ResourceError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers left in this folder; call it under the folder's lock."""
    for file in folder.glob(".*.part.*"):
        file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table: floats with six digits, an empty cell for NaN and None, `yes` and `no`.

    Text that a spreadsheet would evaluate as a formula gets a `'` in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal.

    Raises:
        DataError: there is no such regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into `folder`, by a file `.lock` that goes at the end.

    The operating system releases the lock of a process that dies.

    Raises:
        BusyError: another process has the lock.
    """
    path = folder / ".lock"
    with _locked(path) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            # still locked: who opened this file meanwhile notices that it is gone
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The file of a lock, created where it is missing, opened and locked.

    Raises:
        BusyError: another process has the lock.
    """
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                pid = file.read().strip() or "?"
                raise BusyError(
                    f"{path.parent}: process {pid} is writing here; wait for it, or name another "
                    "--out"
                ) from None
            # between opening and locking, the process before may have removed the file
            if _is_the_file(path, file):
                yield file
                return


def _is_the_file(path: Path, file: TextIO) -> bool:
    """Whether the path leads to this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
