"""What scans will need: memory to prepare them, and space for the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case, Dataset
from selfvox.errors import DataError

_SECONDS = 5.0  # for reading a sample of the scans
_MOST_READ = 16
_STORED_BYTES = 2  # float16
_LABEL_BYTES = 1
# float32 copies of a scan while it is oriented, normalised and resampled, measured
_PREPARED_BYTES = 44
_PROCESS_BYTES = 0.2e9  # of a process with its libraries


@dataclass(frozen=True)
class Estimate:
    """What a data set needs."""

    scans: int
    read: int  # scans that were read for the estimate
    store_bytes: float
    worker_bytes: float  # of a process that prepares the largest scan


def estimate_needs(dataset: Dataset, clock: Callable[[], float] = time.monotonic) -> Estimate:
    """Read a sample of the scans, the largest file first, and conclude on all by their files' size.

    Scans are stored without the air around them, so they take less; scans that are resampled to
    smaller voxels take more.

    Raises:
        DataError: not one of the sample can be read.
    """
    channels = len(dataset.channel_names)
    by_size = sorted(dataset.cases, key=_file_bytes, reverse=True)
    # the largest, then evenly from the rest
    numbers = np.linspace(0, len(by_size) - 1, min(_MOST_READ, len(by_size))).astype(int)
    start = clock()
    read = 0
    values = 0
    file_bytes = 0
    largest = 0
    reason = "there are no scans"
    for number in dict.fromkeys(int(number) for number in numbers):
        if read and clock() - start > _SECONDS:
            break
        case = by_size[number]
        try:
            size = read_case(case, channels).data.size
        except DataError as error:
            reason = str(error)
            continue
        read += 1
        values += size
        file_bytes += _file_bytes(case)
        largest = max(largest, size)
    if not read:
        raise DataError(reason)
    labelled = sum(case.label is not None for case in dataset.cases) / len(dataset.cases)
    per_value = _STORED_BYTES + labelled * _LABEL_BYTES / channels
    all_values = values * sum(map(_file_bytes, dataset.cases)) / max(file_bytes, 1)
    return Estimate(
        scans=len(dataset.cases),
        read=read,
        store_bytes=all_values * per_value,
        worker_bytes=_PROCESS_BYTES + largest * _PREPARED_BYTES,
    )


def _file_bytes(case: Case) -> int:
    """Size of the image files; 0 for those that are gone."""
    return sum(path.stat().st_size for path in case.images if path.is_file())
