"""Telling a person how far a job is: one live line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)


class ProgressBar:
    """Counts done items of a job and prints count, speed and time left. Made by `progress`."""

    def __init__(self, title: str, total: int, start: int, every_seconds: float):
        self.title, self.total, self.done = title, total, start
        self._every = every_seconds
        # a monotonic clock: time of day may jump
        self._began = self._printed = time.monotonic()
        self._start = start

    def advance(self, note: str = "", count: int = 1) -> None:
        """Count `count` more items as done; `note` is shown beside them."""
        self.done += count
        now = time.monotonic()
        if now - self._printed < self._every and self.done < self.total:
            return
        self._printed = now
        left = (now - self._began) / max(1, self.done - self._start) * (self.total - self.done)
        line = f"{self.title}  {self.done}/{self.total}  {note + '  ' if note else ''}{format_seconds(left)} left"
        if console.is_terminal:
            console.print(
                line,
                end="\r" if self.done < self.total else "\n",
                overflow="ellipsis",
                no_wrap=True,
                soft_wrap=False,
            )
        else:
            console.print(line, markup=False)


@contextlib.contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of a job of `total` items, `start` of which were done before."""
    yield ProgressBar(title, total, start, every_seconds=0.2 if console.is_terminal else 10.0)
    sys.stderr.flush()


def echo(text: str) -> None:
    """One line for the person at the terminal."""
    console.print(text, markup=False)


def silence() -> None:
    """Say nothing more: the first of several processes speaks for all."""
    console.quiet = True


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """Append what is said meanwhile to a file, instead of to the person at the terminal."""
    with (
        log.open("a", encoding="utf-8") as file,
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
