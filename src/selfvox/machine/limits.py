"""Checks of what the system allows: cores, memory, open files, CPU time, size of files."""

from __future__ import annotations

import math
import resource

from selfvox.caches import private_folder
from selfvox.machine.check import Check, gigabytes

_LEAST_MEMORY_BYTES = 4e9  # for a training with default settings on a CPU
_MOST_SHARE = 0.7  # of the memory, before it is a warning
_LEAST_OPEN_FILES = 1024


def check_threads(threads: int, cores: int) -> list[Check]:
    """Compare torch's threads with the cores.

    Args:
        threads: of torch.
        cores: that this process may use.
    """
    text = f"{cores} cores may be used, torch computes with {threads}"
    if threads > cores:
        return [Check("threads", "warn", text, f"export OMP_NUM_THREADS={cores}")]
    # torch takes one thread for two cores that share their arithmetic units
    if threads < cores // 2:
        remedy = f"if other work does not need the cores, export OMP_NUM_THREADS={cores}"
        return [Check("threads", "warn", text, remedy)]
    return [Check("threads", "ok", text)]


def check_memory(free_bytes: float, needed_bytes: float | None, workers: int) -> list[Check]:
    """Compare the free memory with the estimate.

    Args:
        free_bytes: that this process may still take; infinite where the system does not say.
        needed_bytes: to prepare the scans; None without scans.
        workers: processes that prepare them.
    """
    if math.isinf(free_bytes):
        return [Check("memory", "warn", "the system does not say what is free", "watch the run")]
    text = f"{gigabytes(free_bytes)} free"
    remedy = "a smaller --batch and --crop, or end other programs"
    if needed_bytes is not None:
        text += f", to prepare with {workers} workers needs up to {gigabytes(needed_bytes)}"
        per_worker = needed_bytes / workers
        fitting = int(free_bytes * _MOST_SHARE / per_worker)
        remedy = f"--workers {fitting}" if fitting else "--size or a larger machine"
        if per_worker > free_bytes:
            return [Check("memory", "fail", text, "a larger machine, or smaller scans")]
        if needed_bytes > free_bytes * _MOST_SHARE:
            return [Check("memory", "warn", text, remedy)]
        remedy = "a smaller --batch and --crop, or end other programs"
    if free_bytes < _LEAST_MEMORY_BYTES:
        text += f"; a training takes about {gigabytes(_LEAST_MEMORY_BYTES)}"
        return [Check("memory", "warn", text, remedy)]
    return [Check("memory", "ok", text)]


def check_process_limits() -> list[Check]:
    """The limits of `ulimit` that end a run, or that slow it down."""
    checks = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _LEAST_OPEN_FILES:
        text = f"{files}; arrays are opened again and again where there are many scans"
        checks.append(Check("open files", "warn", text, "ulimit -n 4096"))
    else:
        text = "no limit" if files == resource.RLIM_INFINITY else f"{files}"
        checks.append(Check("open files", "ok", text))
    seconds, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds != resource.RLIM_INFINITY:
        text = f"ends after {seconds} s; a training saves first"
        checks.append(Check("CPU time", "warn", text, "ulimit -t unlimited, or --resume later"))
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        text = f"files may have {gigabytes(size)}; larger arrays cannot be written"
        checks.append(Check("file size", "warn", text, "ulimit -f unlimited"))
    return checks


def check_cache() -> list[Check]:
    """Whether there is a folder for compiled code that nobody else can write."""
    if private_folder("numba") is None:
        text = "no private folder for compiled code; each start compiles it again"
        return [Check("cache", "warn", text, "set XDG_CACHE_HOME to a folder of yours")]
    return [Check("cache", "ok", "compiled code is kept in a private folder")]
