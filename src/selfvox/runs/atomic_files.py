"""Atomic files: written to a temporary file, fsynced, renamed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfvox.errors import DISK_FULL_ERRORS, ResourceError, UsageError
from selfvox.runs.progress import echo, echo_once
from selfvox.runs.safe_open import open_regular

# a spreadsheet evaluates cells that begin like this
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# of CIFS and of some FUSE file systems
_NO_FOLDER_FSYNC = {errno.EINVAL, errno.EACCES, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP}

RETRY_IO_ERROR_AFTER_S = (0.2, 1.0)


@contextmanager
def atomic_write(path: Path, *, sync_file: bool = True, sync_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; afterwards fsync it and rename it to `path`.

    After an error the temporary file is removed and `path` stays as it was. The temporary name
    ends like `path`, since many writers choose the format by the ending.

    Args:
        path: the file.
        sync_file: wait until the contents are on the disk; without, they may be missing after a
            power failure.
        sync_folder: likewise the name; `fsync_folder` does it once for many files.

    Raises:
        ResourceError: the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        # of a killed process with the same number
        temporary.unlink(missing_ok=True)
        # a link that somebody puts there instead is not followed
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        if sync_file:
            with temporary.open("rb") as file:
                _fsync(file.fileno(), path)
        temporary.replace(path)
        if sync_folder:
            # the new name is an entry of the folder, which has to reach the disk too
            fsync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            raise ResourceError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # the system's error has no name of a file
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers left in this folder; call it under the folder's lock."""
    for file in folder.glob(".*.part.*"):
        file.unlink(missing_ok=True)


def check_new_folder(path: Path) -> None:
    """Refuse a folder to write into that has something in it, or is a file.

    Raises:
        UsageError: it has.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: exists and is not an empty folder; name another --out")


def retry_io_errors(write: Callable[[], None]) -> None:
    """Call `write`, again after an input/output error (EIO), three times in all.

    A network drive that was away for a moment answers EIO. The whole file has to be written again:
    the system forgets what it could not write, so that a second fsync alone would hide the loss.
    """
    for seconds in RETRY_IO_ERROR_AFTER_S:
        try:
            return write()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            echo(f"{error.filename or 'a file'}: {error.strerror}; writing again in {seconds} s")
        time.sleep(seconds)
    write()


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write `content` to `path`, atomically; without `sync` a power failure may take it."""

    def write() -> None:
        with atomic_write(path, sync_file=sync, sync_folder=sync) as temporary:
            temporary.write_bytes(content)

    retry_io_errors(write)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write `text` to `path`; as `write_bytes`."""
    write_bytes(path, text.encode(), sync=sync)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Write `value` as JSON, keys in the order given; `sync` as in `write_text`.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", sync=sync)


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


def fsync_folder(folder: Path) -> None:
    """Fsync a folder; where its file system cannot, that is printed once."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _fsync(descriptor, folder)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
        echo_once(
            f"{folder}: this file system cannot fsync a folder ({error.strerror}); after a power "
            "failure the last files may be missing"
        )
