"""Open regular files only: opening a pipe waits for ever, and a device may have no end."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from selfvox.errors import DataError, printable


def open_regular(path: Path, name: str = "") -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Args:
        path: the file.
        name: what messages call it, where the file's own name may be that of a patient.

    Raises:
        DataError: it is missing, forbidden, or a folder, pipe, socket or device.
    """
    name = name or printable(path.name)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{name}: not a regular file but {_kind(mode)}; name a file")
        # O_NONBLOCK: if the file is swapped for a pipe after the check, the open returns at once
        # and the check below refuses it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise DataError(f"{name}: {reason}; check the path and its permissions") from error
    except ValueError as error:  # such as a NUL in the path
        raise DataError(
            f"{name}: not a possible file name; check the path and its permissions"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name}: no longer a regular file; name a file")
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a socket"
