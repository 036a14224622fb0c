"""One function over many items: in this process, in several, or on a dask cluster.

A worker that dies costs only the item that killed it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from selfvox.errors import ResourceError, UsageError

T = TypeVar("T")
R = TypeVar("R")

SCHEDULER_TIMEOUT = "10s"
_LEAST_FOR_POOL = 8  # items; starting workers takes about a second


class WorkerDiedError(Exception):
    """The process that worked on an item died, most often because of too little memory."""


def run(
    function: Callable[[T], R], items: Sequence[T], workers: int = 0, scheduler: str | None = None
) -> Iterator[tuple[int, R | WorkerDiedError]]:
    """Yield the number of each item and its result, in the order in which they finish.

    Args:
        function: a function at the top of a module, which can be pickled; it may run twice on an
            item if a worker died.
        items: its arguments; items and results are pickled.
        workers: processes; 0: one per core. A single one, or few items, run in this process.
        scheduler: address of a dask.distributed scheduler that runs the function instead; its
            workers must see the same paths.

    Raises:
        ResourceError: the cluster cannot be reached.
        UsageError: dask.distributed is not installed.
        Exception: whatever `function` raises.
    """
    workers = workers or _available_cores()
    if scheduler is not None:
        yield from _on_cluster(function, items, scheduler)
    elif workers == 1 or len(items) < _LEAST_FOR_POOL:
        yield from enumerate(map(function, items))
    else:
        yield from _in_processes(function, items, workers)


def _available_cores() -> int:
    """Cores that this process may use; a scheduler such as SLURM may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[int, R | WorkerDiedError]]:
    waiting = deque(enumerate(items))
    suspects = deque[tuple[int, T]]()
    while waiting or suspects:
        # a dead worker breaks the whole pool: all items that ran then are run again, one at a time,
        # to find the one that killed it
        alone = bool(suspects)
        queue = suspects if alone else waiting
        width = 1 if alone else min(workers, len(waiting))
        running: dict[Future[R], tuple[int, T]] = {}
        try:
            yield from _run_pool(function, queue, width, running)
        except BrokenProcessPool:
            if alone:
                _, (number, _) = running.popitem()
                yield number, WorkerDiedError()
            suspects.extend(running.values())


def _run_pool(
    function: Callable[[T], R],
    queue: deque[tuple[int, T]],
    width: int,
    running: dict[Future[R], tuple[int, T]],
) -> Iterator[tuple[int, R]]:
    """Empty the queue with a pool of `width` processes; `running` are the items at work.

    Raises:
        BrokenProcessPool: a process died.
    """
    context = multiprocessing.get_context(_start_method())
    with ProcessPoolExecutor(width, context, _begin_worker) as pool, _ended_children():
        while queue or running:
            while queue and len(running) < width:
                number, item = queue.popleft()
                # submitting may start a worker
                with _hidden_main():
                    running[_submit(pool, function, item)] = number, item
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                number, _ = running.pop(future)
                yield number, result


@contextmanager
def _ended_children() -> Iterator[None]:
    """End the processes that were started within at once, if there is an error or a stop signal.

    A pool would wait for the items at work, which may take minutes. Their files are atomic.
    """
    earlier = set(multiprocessing.active_children())
    try:
        yield
    # also of a signal, and of a caller that wants no more results
    except BaseException:
        for child in set(multiprocessing.active_children()) - earlier:
            child.terminate()
        raise


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        # a worker died while idle: the item fails as if it had been running
        failed: Future[R] = Future()
        failed.set_exception(error)
        return failed


def _on_cluster(
    function: Callable[[T], R], items: Sequence[T], scheduler: str
) -> Iterator[tuple[int, R | WorkerDiedError]]:
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "scheduler: needs dask.distributed; install it with `pip install selfvox[cluster]`"
        ) from None
    # a lost scheduler is reported below, in one line
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        _check_reachable(scheduler)
        client = distributed.Client(scheduler, timeout=SCHEDULER_TIMEOUT)
    # transports that are not installed or not set up raise many kinds of errors
    except Exception as error:
        raise ResourceError(
            f"scheduler {scheduler}: cannot be reached ({error}); is `dask scheduler` running?"
        ) from None
    with client:
        futures = client.map(function, items, pure=False)
        numbers = {future.key: number for number, future in enumerate(futures)}
        for future in distributed.as_completed(futures):
            try:
                yield numbers[future.key], future.result()
            except distributed.KilledWorker:
                yield numbers[future.key], WorkerDiedError()
            except CancelledError:
                raise ResourceError(
                    f"scheduler {scheduler}: was lost; start it and run the same command again, "
                    "finished scans are kept"
                ) from None


def _check_reachable(scheduler: str) -> None:
    """Connect to a scheduler once; raises whatever its transport raises.

    A client that cannot connect is left half built, and can wait for itself for ever when it is
    collected while another client starts.
    """
    import distributed.comm

    async def connect() -> None:
        arguments = distributed.Security().get_connection_args("client")
        comm = await distributed.comm.connect(scheduler, timeout=SCHEDULER_TIMEOUT, **arguments)
        await comm.close()

    # a notebook has an event loop of its own
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, connect()).result()


def _start_method() -> str:
    # a fork of a process that has threads (torch's) can hang; a fork server imports the readers
    # once for all workers
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["selfvox.data.preparation.fit_recipe"])
    return "forkserver"


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new workers from running the caller's script again.

    A worker imports the main module, and most scripts have no `if __name__ == "__main__"`.
    """
    main: Any = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin_worker() -> None:
    # Ctrl-C and a closed terminal reach all processes of the group; the main process ends the
    # workers
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # only here: the workers alone resample; its own documentation calls it sitk
    import SimpleITK as sitk  # noqa: N813

    # there is one worker per core already
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker with its parent.

    Workers have both ends of their queue open: if the parent was killed, they would wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
