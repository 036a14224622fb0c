"""Errors and their exit codes. A message is one line: the file, the reason, the remedy."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import PurePath

DISK_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of the operating system


class SelfvoxError(Exception):
    """Base of all errors that a user can mend; the command line returns `exit_code`."""

    exit_code = 1
    is_silent = False  # another process prints it


class UsageError(SelfvoxError):
    """An invalid option or setting."""

    exit_code = 2


class BusyError(UsageError):
    """Another process is working in the folder."""


class DataError(SelfvoxError):
    """A scan, label, table or store that cannot be used."""

    exit_code = 3


class WeightsError(SelfvoxError):
    """A checkpoint or encoder that is damaged, unsafe or does not fit."""

    exit_code = 4


class ResourceError(SelfvoxError):
    """Disk space, memory or a device is missing."""

    exit_code = 5


class NumericalError(SelfvoxError):
    """Training produced values that are not finite."""

    exit_code = 6


class Stopped(SelfvoxError):  # noqa: N818 - a stop is not an error
    """Stopped by a signal, after everything was saved; the exit code is 128 + the signal number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of this machine or of a device is full."""
    # by its name: torch may not be imported
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # torch has no exception of its own for the memory of a CPU
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def list_problems(problems: Sequence[str]) -> str:
    """Several problems in one line, `2 problems: (1) ...; (2) ...`; a single one as it is."""
    if len(problems) == 1:
        return problems[0]
    numbered = "; ".join(f"({number}) {text}" for number, text in enumerate(problems, 1))
    return f"{len(problems)} problems: {numbered}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'simclr'?`, or the list of all choices if none is similar."""
    choices = sorted(choices)
    similar = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if similar:
        return f"; did you mean '{similar[0]}'?"
    return f"; known: {', '.join(choices) or 'none'}"


def printable(path: PurePath | str) -> str:
    """A path for a message: control characters escaped, so that it stays one line."""
    return "".join(c if c.isprintable() else percent_encoded(c) for c in str(path))


def percent_encoded(character: str) -> str:
    """A character as `%XX` or `%uXXXX`."""
    code = ord(character)
    return f"%{code:02X}" if code < 0x100 else f"%u{code:04X}"
