"""Work in several processes ends with the process that started it, or with the cluster."""

import multiprocessing
import operator
import signal
import time

import pytest

from selfvox.data.preparation import parallel
from selfvox.errors import ResourceError
from selfvox.runs.stop_signals import StopRequest, handle_stop_signals, request_stop


def for_hours(item):
    time.sleep(0 if item == 0 else 10_000)
    return item


@pytest.mark.fault("F3v", "SIGTERM while workers prepare", "no worker is left")
def test_a_signal_ends_the_workers_though_their_items_would_take_hours():
    results = parallel.run(for_hours, list(range(10)), workers=2)
    assert next(results) == (0, 0)
    assert len(multiprocessing.active_children()) == 2
    with handle_stop_signals(request_stop), pytest.raises(StopRequest):
        results.throw(StopRequest(signal.SIGTERM))
    assert not multiprocessing.active_children()


@pytest.mark.fault("X16s F33", "tcp://, tls://, ucx:// addresses without a scheduler", "one line")
@pytest.mark.parametrize("scheme", ["tcp", "tls", "ucx", "foo"])
def test_a_cluster_that_cannot_be_reached_is_refused_in_one_line(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(parallel, "SCHEDULER_TIMEOUT", "1s")
    with pytest.raises(ResourceError, match=rf"^scheduler {scheme}://127.0.0.1:9: cannot be"):
        list(parallel.run(operator.neg, range(2), scheduler=f"{scheme}://127.0.0.1:9"))
    # a half-built client could wait for itself for ever when it is collected
    assert not distributed.Client._instances


@pytest.mark.fault(
    "F33c F33",
    "a dask scheduler that ends during the work",
    "one line; finished scans are kept",
)
@pytest.mark.filterwarnings("ignore")  # dask's own
def test_a_scheduler_that_is_lost_ends_in_one_line() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        results = parallel.run(time.sleep, [0.0, 3.0], scheduler=address)
        assert next(results) == (0, None)
        cluster.close()
        with pytest.raises(ResourceError, match=f"^scheduler {address}: was lost; start it"):
            next(results)
