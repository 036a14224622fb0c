"""Signals that ask a run to stop: it finishes the step and saves first."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

from selfvox.runs.progress import echo

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM sends USR1 before time is up


class StopSignals:
    """Note a signal in `number` instead of ending; a second SIGINT ends the process at once."""

    def __enter__(self) -> StopSignals:
        self.number = 0
        self._handlers: dict[int, Any] = {}
        # Python allows handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in CAUGHT}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.number = number
        hint = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
        # Python refuses to write this line if the signal interrupted the writing of another one
        with contextlib.suppress(RuntimeError):
            echo(f"finishing this step and saving{hint}")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Ignore these signals in a process that reads data.

    A signal to the whole process group is meant for the process that trains, and that one still
    needs the readers' batches.
    """
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
