"""Stop signals during training: the step is finished, and a checkpoint saved, first."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType

from selfvox.runs.progress import echo
from selfvox.runs.stop_signals import handle_stop_signals


class StopSignals:
    """Note a signal in `number` instead of ending; a second SIGINT ends the process at once."""

    def __enter__(self) -> StopSignals:
        self.number = 0
        self._handling = handle_stop_signals(self._note)
        self._handling.__enter__()
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        # a limit of CPU time repeats its signal every second
        is_first = not self.number
        self.number = number
        hint = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
        # Python refuses to write this line if the signal interrupted the writing of another one
        with contextlib.suppress(RuntimeError):
            if is_first or hint:
                echo(f"finishing this step and saving{hint}")

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)
