"""Metrics for TensorBoard.

The event file has a fixed name; tensorboard's own writer would put the host's name into it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

EVENT_FILE = "events.out.tfevents"  # TensorBoard looks for `tfevents` in a name


def add_scalars(folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append one step's metrics."""
    # here and below: tensorboard is imported when the first line is written
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
    _append(folder, Event(step=step, summary=Summary(value=values)))


def drop_scalars_after(folder: Path, step: int) -> None:
    """Make TensorBoard drop the steps after `step`, which a resumed run computes again."""
    if (folder / EVENT_FILE).exists():
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        _append(folder, Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))


def _append(folder: Path, event: Event) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / EVENT_FILE).open("ab") as file:
        writer = RecordWriter(file)
        is_new = file.tell() == 0
        if is_new:
            # what TensorBoard expects of the first event
            header = Event(wall_time=time.time(), file_version="brain.Event:2")
            writer.write(header.SerializeToString())
        event.wall_time = time.time()
        writer.write(event.SerializeToString())
