"""A log file: what is printed, with time stamps."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# of this process: the open log, and what was printed before there was one
_open_logs: list[TextIO | None] = []  # the innermost last; None: nothing is logged
_earlier_lines: deque[str] = deque(maxlen=1000)


def write_to_log(text: str) -> None:
    """Write a line to the open log; without one it is kept for the next."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {' '.join(text.splitlines())}\n"
    if not _open_logs:
        _earlier_lines.append(line)
        return
    file = _open_logs[-1]
    if file is None:
        return
    # a full disk must not end the work
    with contextlib.suppress(OSError):
        file.write(line)
        file.flush()


def forget_earlier_lines() -> None:
    """Begin another command, to which what was printed before does not belong."""
    _earlier_lines.clear()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what is printed meanwhile, and was printed since the command began, to a file.

    The last line of work that fails is its error. Within another log nothing changes.
    """
    if _open_logs:
        yield
        return
    # Path.open takes no opener; closed below, where a full disk is not an error
    file = open(  # noqa: SIM115
        path, "a", encoding="utf-8", errors="backslashreplace", opener=_open_file
    )
    # a full disk must not end the work
    with contextlib.suppress(OSError):
        file.writelines(_earlier_lines)
        file.flush()
    _earlier_lines.clear()
    _open_logs.append(file)
    try:
        yield
    except BaseException as error:
        write_to_log(f"{type(error).__name__}: {error}")
        raise
    finally:
        _open_logs.pop()
        with contextlib.suppress(OSError):
            file.close()


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Log nothing meanwhile, such as what goes to a file as a whole."""
    _open_logs.append(None)
    try:
        yield
    finally:
        _open_logs.pop()


def _open_file(path: str, flags: int) -> int:
    # a link could lead to a file of somebody else
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
