"""What can go wrong, and the exit code that says so. A message is one line: the file, the reason, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SelfvoxError(Exception):
    """Base of every refusal that a person is meant to read; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SelfvoxError):
    """An option or setting that cannot be."""

    exit_code = 2


class BusyError(UsageError):
    """Another process is at work in the folder."""


class DataError(SelfvoxError):
    """A scan, label, table or store that cannot be used."""

    exit_code = 3


class WeightsError(SelfvoxError):
    """A checkpoint or encoder that does not fit, is damaged or is not trusted."""

    exit_code = 4


class ResourceError(SelfvoxError):
    """Disk, memory or a device is lacking."""

    exit_code = 5


class NumericalError(SelfvoxError):
    """Training left the finite numbers."""

    exit_code = 6


class Stopped(SelfvoxError):  # noqa: N818 - it is no error of anybody
    """A signal asked to stop; everything was saved first. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'simclr'?`, or the whole list where nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known) or 'none'}"
