"""Progress for the terminal: one live line, or a line every few seconds in a log file."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from selfvox.runs.log_file import without_log, write_to_log

_LOG_SECONDS = 10.0  # from one line of progress to the next
console = Console(stderr=True, highlight=False, soft_wrap=True)


class ProgressBar:
    """Counts finished items and prints the time left; made by `progress_bar`."""

    def __init__(self, title: str, total: int, start: int, every_seconds: float):
        self.title = title
        self.total = total
        self.done = start
        self._start = start
        self._every_seconds = every_seconds
        # a monotonic clock: time of day may jump
        self._start_time = time.monotonic()
        self._last_print = self._start_time
        self._last_log = self._start_time

    def advance(self, note: str = "", count: int = 1) -> None:
        """Count `count` more items as done; `note` is printed in the same line."""
        self.done += count
        self._print(note, 0.0)

    def show(self, share: float, note: str) -> None:
        """Print how far the current item is, as a share of it; `note` says which one it is."""
        self._print(f"{100 * share:.0f} % of {note}", share)

    def _print(self, note: str, share: float) -> None:
        """Print the line, if it is time; `share` of the current item is done too."""
        now_seconds = time.monotonic()
        finished = self.done >= self.total
        to_log = finished or now_seconds - self._last_log >= _LOG_SECONDS
        to_terminal = finished or now_seconds - self._last_print >= self._every_seconds
        if not (to_log or to_terminal):
            return
        done = self.done + share
        seconds_per_item = (now_seconds - self._start_time) / (done - self._start or 1)
        remaining = format_seconds(seconds_per_item * (self.total - done))
        note = f"{note}  " if note else ""
        line = f"{self.title}  {self.done}/{self.total}  {note}{remaining} left"
        if to_log:
            self._last_log = now_seconds
            write_to_log(line)
        if not to_terminal:
            return
        self._last_print = now_seconds
        if console.is_terminal:
            _print(
                line,
                end="\n" if finished else "\r",
                overflow="ellipsis",
                no_wrap=True,
                soft_wrap=False,
            )
        else:
            _print(line, markup=False)


@contextlib.contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of a job of `total` items; `start` of them were done by an earlier run."""
    yield ProgressBar(title, total, start, every_seconds=0.2 if console.is_terminal else 10.0)
    with contextlib.suppress(OSError):
        sys.stderr.flush()


def echo(text: str) -> None:
    """Print one line for the person at the terminal, and write it to the log."""
    _print(text, markup=False)
    write_to_log(text)


@functools.cache
def echo_once(text: str) -> None:
    """Print one line, unless this process has printed it before."""
    echo(text)


def _print(text: str, **how: Any) -> None:
    """Print, if that is possible: a closed terminal or a full disk must not end the work."""
    with contextlib.suppress(OSError):
        console.print(text, **how)


def silence() -> None:
    """Print nothing more: of several processes only the first one prints."""
    console.quiet = True


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """Print no messages and no progress meanwhile; a log gets them all the same."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """Append what is printed meanwhile to a file, instead of to the terminal."""
    with (
        log.open("a", encoding="utf-8") as file,
        without_log(),
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def format_seconds(seconds: float) -> str:
    """Seconds as people write them: `12 s`, `3:05 min`, `2:10 h`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
