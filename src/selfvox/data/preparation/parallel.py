"""One function over many items: here, in processes, or on a dask cluster; a worker that dies costs its item only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so

from selfvox.errors import ResourceError, UsageError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = "10s"  # for a scheduler to answer
_WORTH_A_POOL = 8  # items; starting workers takes about a second


class WorkerDiedError(Exception):
    """The process at work on an item died, most often for want of memory."""


def run(
    function: Callable[[T], R], items: Sequence[T], workers: int = 0, scheduler: str | None = None
) -> Iterator[tuple[int, R | WorkerDiedError]]:
    """Yield the number of each item and its result, as they are done.

    Args:
        function: a module's own function; it may run twice on an item whose worker died.
        items: what it is applied to; items and results are pickled.
        workers: processes; 0 takes one per core. One, or few items, run in this process.
        scheduler: address of a dask.distributed scheduler that runs it instead; its workers must see the same paths.

    Raises:
        ResourceError: the cluster cannot be reached, or what `function` raises.
    """
    workers = workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    if scheduler is not None:
        yield from _on_cluster(function, items, scheduler)
    elif workers == 1 or len(items) < _WORTH_A_POOL:
        yield from enumerate(map(function, items))
    else:
        yield from _in_processes(function, items, workers)


def _in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[int, R | WorkerDiedError]]:
    todo, suspects = deque(enumerate(items)), deque[tuple[int, T]]()
    while todo or suspects:
        # what was at work when a worker died goes again, one at a time, to find the one that did it
        alone = bool(suspects)
        queue, width = (suspects, 1) if alone else (todo, min(workers, len(todo)))
        flying: dict[Future[R], tuple[int, T]] = {}
        try:
            with ProcessPoolExecutor(
                width, multiprocessing.get_context(_start_method()), _begin_worker
            ) as pool:
                while queue or flying:
                    while queue and len(flying) < width:
                        number, item = queue.popleft()
                        with _hidden_main():
                            flying[_submit(pool, function, item)] = number, item
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        number, _ = flying.pop(future)
                        yield number, result
        except BrokenProcessPool:
            if alone:
                number, _ = flying.popitem()[1]
                yield number, WorkerDiedError()
                suspects.extend(flying.values())
            else:
                suspects.extend(flying.values())


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(function, item)
    except (
        BrokenProcessPool
    ) as error:  # it died while idle: the item is told so, as if it had been running
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
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE)
    except (OSError, ValueError) as error:
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


def _start_method() -> str:
    # a fork of a process that has threads (torch's) can hang; a fork server imports the readers once for all workers
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["selfvox.data.preparation.fit_recipe"])
    return "forkserver"


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new workers from running the caller's script again, which has no `if __name__ == "__main__"` as a rule."""
    main: Any = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin_worker() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the main process ends us in order
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Pool workers hold both ends of their queue: after a kill of the parent they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
