"""Readers: processes that read samples while a network trains, and end when it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from selfvox.errors import ResourceError, SelfvoxError
from selfvox.runs.progress import echo, format_seconds
from selfvox.runs.stop_signals import ignore_stop_signals

SILENT_S = 300  # without a batch, until it is reported; a slow disk is not rare
_REMEDY = "use a smaller --batch or --crop, or a larger machine"
GRACE_S = 2.0  # for readers to end by themselves, before they are killed


def read_batches(
    data: Dataset[dict[str, Tensor]],
    numbers: Iterable[list[int]],
    workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield one batch for each list of sample numbers.

    Args:
        data: samples by number.
        numbers: of the samples of each batch.
        workers: processes that read; 0: this one.
        pin_memory: for faster copies to a GPU.

    Raises:
        DataError: a scan that cannot be read, and cannot be replaced.
        ResourceError: a process that reads died.
    """
    loader: DataLoader[Any] = DataLoader(
        _WithErrors(data),
        batch_sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=SILENT_S if workers else 0,
        worker_init_fn=_begin_reader,
        collate_fn=_collate,
    )
    earlier = set(multiprocessing.active_children())
    batches = iter(loader)
    readers = set(multiprocessing.active_children()) - earlier
    try:
        while (batch := _wait_for(batches)) is not None:
            if isinstance(batch, SelfvoxError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            f"a process that reads the scans died, most likely of too little memory; {_REMEDY}"
        ) from None
    finally:
        if readers:
            _end(batches, readers)


def _wait_for(batches: Iterator[Any]) -> Any:
    """The next batch, None after the last; it is reported once if the readers are silent."""
    is_reported = False
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
        # the loader still waits for the same batch
        if not is_reported:
            echo(
                "the processes that read scans have delivered nothing for "
                f"{format_seconds(SILENT_S)}; is the disk with the scans slow, or gone? waiting"
            )
        is_reported = True


def _end(batches: Any, readers: Collection[BaseProcess]) -> None:
    """End the readers, within seconds whatever they do.

    Readers ignore SIGTERM, by which the loader would end one that hangs, and Python waits at its
    end for every process that it started.
    """
    killer = threading.Timer(GRACE_S, _kill, [readers])
    killer.start()
    # the loader takes a reader that is killed for one that failed
    with contextlib.suppress(RuntimeError):
        batches._shutdown_workers()
    killer.cancel()
    _kill(readers)
    for reader in readers:
        reader.join(GRACE_S)


def _kill(readers: Collection[BaseProcess]) -> None:
    for reader in readers:
        reader.kill()


def _begin_reader(worker: int) -> None:
    ignore_stop_signals(worker)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this reader with the process that trains, also if that was killed and a disk hangs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _WithErrors(Dataset[Any]):
    """Samples, or the errors of those that cannot be read.

    A loader would turn an error of its processes into one with a traceback as its message.
    """

    def __init__(self, data: Dataset[dict[str, Tensor]]):
        self.data = data

    def __getitem__(self, sample: int) -> dict[str, Tensor] | SelfvoxError:
        try:
            return self.data[sample]
        except SelfvoxError as error:
            return error
        except MemoryError:
            # not the device's, which smaller parts of a batch may fit
            return ResourceError(f"the memory is full while scans are read; {_REMEDY}")


def _collate(samples: list[Any]) -> Any:
    """A batch of these samples, or the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, SelfvoxError)]
    return errors[0] if errors else default_collate(samples)
