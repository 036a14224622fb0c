"""Signals that ask a process to stop, which most work does at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from selfvox.errors import Stopped

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,  # the terminal was closed, or the connection to it was lost
    signal.SIGXCPU,  # the soft limit of CPU time
    signal.SIGUSR1,  # SLURM can send it before time is up
)

Handler = Callable[[int, FrameType | None], None]


class StopRequest(KeyboardInterrupt):
    """A stop signal arrived.

    It is no ordinary exception, which a loop over scans might take for a damaged scan.
    """

    def __init__(self, signal_number: int):
        super().__init__()
        self.signal_number = signal_number


@contextlib.contextmanager
def handle_stop_signals(handler: Handler) -> Iterator[None]:
    """Call `handler` on each stop signal, then restore the handlers before.

    Under `nohup` SIGHUP is ignored, and stays so. Python has handlers in the main thread only; in
    another one nothing changes.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def request_stop(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of work that may end at any moment, since its files are atomic."""
    raise StopRequest(number)


@contextlib.contextmanager
def stop_on_signal(out: Path) -> Iterator[None]:
    """End as `Stopped` on a stop signal, at once; the same command continues the work.

    Notes that the work added to the exception, such as what is lost, are part of the message.

    Args:
        out: the folder of the work, for the message.
    """
    try:
        with handle_stop_signals(request_stop):
            yield
    except KeyboardInterrupt as request:
        number = getattr(request, "signal_number", signal.SIGINT)
        name = signal.Signals(number).name
        notes = "".join(f"; {note}" for note in getattr(request, "__notes__", ()))
        raise Stopped(
            f"{out}: stopped by {name}{notes}; run the same command again to continue", number
        ) from None


def ignore_stop_signals(worker: int) -> None:
    """Ignore these signals in a process that reads data.

    A signal to the whole process group is meant for the process that trains, and that one still
    needs the readers' batches.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
