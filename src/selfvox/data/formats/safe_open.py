"""Opening only what is a plain file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from selfvox.data.naming import printable
from selfvox.errors import DataError


def open_regular(path: Path, called: str = "") -> BinaryIO:
    """Open a regular file, or a link to one, for reading; messages call it `called`, where its name is not to be told.

    Raises:
        DataError: it is missing, forbidden, or a folder, pipe, socket or device; these are never opened, since
            opening a pipe waits for ever.
    """
    name = called or printable(path.name)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{name}: not a regular file but {_kind(mode)}; name a scan")
        # O_NONBLOCK: were the file swapped for a pipe since, the open returns at once and the next check sees it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = (
            (error.strerror or "cannot be opened")
            if isinstance(error, OSError)
            else "not a possible file name"
        )
        raise DataError(f"{name}: {reason.lower()}; check the path and its permissions") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name}: not a regular file any more; name a scan")
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return (
        "a pipe"
        if stat.S_ISFIFO(mode)
        else "a device"
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        else "a socket"
    )
