"""Work in several processes ends with the process that started it."""

import multiprocessing
import signal
import time

import pytest

from selfvox.data.preparation import parallel
from selfvox.runs.stop_signals import StopRequest, handle_stop_signals, request_stop


def for_hours(item):
    time.sleep(0 if item == 0 else 10_000)
    return item


def test_a_signal_ends_the_workers_though_their_items_would_take_hours():
    results = parallel.run(for_hours, list(range(10)), workers=2)
    assert next(results) == (0, 0)
    assert len(multiprocessing.active_children()) == 2
    with handle_stop_signals(request_stop), pytest.raises(StopRequest):
        results.throw(StopRequest(signal.SIGTERM))
    assert not multiprocessing.active_children()
