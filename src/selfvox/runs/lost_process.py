"""Which of several processes gives no sign of life, and which one the others wait for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from selfvox.runs.progress import echo


class Beat(NamedTuple):
    """A sign of life."""

    number: int
    progress: int
    name: str
    is_busy: bool = False
    is_done: bool = False


NO_BEAT = Beat(0, 0, "a process that did not start")


class Judge:
    """Finds the process that gives no sign of life, and prints which one the others wait for.

    Args:
        processes: number of all.
        lost_after_s: seconds without a sign of life.
        late_after_s: seconds while the others wait.
    """

    def __init__(self, processes: int, lost_after_s: float, late_after_s: float):
        self.lost_after_s = lost_after_s
        self.late_after_s = late_after_s
        self._beats = [NO_BEAT] * processes
        self._beaten = [time.monotonic()] * processes  # when the number of the beat changed
        self._advanced = [time.monotonic()] * processes  # when the progress changed
        self._called_late: dict[int, int] = {}
        self._last = time.monotonic()

    def find_lost(self, beats: Sequence[Beat], now: float) -> str | None:
        """The name of a process that gave no sign of life for too long; None if all live."""
        # this process itself was stopped meanwhile: it knows nothing of the others
        slept = now - self._last > self.lost_after_s / 2
        self._last = now
        for rank, (before, beat) in enumerate(zip(self._beats, beats, strict=True)):
            if slept or beat.number != before.number:
                self._beaten[rank] = now
            if slept or beat.progress != before.progress:
                self._advanced[rank] = now
        self._beats = list(beats)
        self._name_late(now)
        for rank, beat in enumerate(beats):
            if not beat.is_done and now - self._beaten[rank] > self.lost_after_s:
                return beat.name
        return None

    def _name_late(self, now: float) -> None:
        furthest = max(beat.progress for beat in self._beats)
        for rank, beat in enumerate(self._beats):
            is_late = beat.progress < furthest and now - self._advanced[rank] > self.late_after_s
            is_free = beat.is_done or beat.is_busy
            if is_late and not is_free and self._called_late.get(rank) != beat.progress:
                self._called_late[rank] = beat.progress
                echo(f"{beat.name} is late: the others wait for it since {self.late_after_s:.0f} s")
