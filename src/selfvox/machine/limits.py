"""What the system allows this process: cores, memory, open files, CPU time, size of files."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

from selfvox.caches import private_folder
from selfvox.machine.check import Check, gigabytes

_LEAST_MEMORY_BYTES = 4e9  # for a training with default settings on a CPU
_MOST_SHARE = 0.7  # of the memory, before it is a warning
_LEAST_OPEN_FILES = 1024
_V1_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: by its affinity, and by the quota of its container.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


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


def memory_bytes(root: Path = Path("/")) -> float:
    """Memory that this process may still take: of the machine, its container and its limits."""
    free = [_field(root / "proc" / "meminfo", "MemAvailable:") * 1024]
    free += _container_memory(root)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = _field(root / "proc" / "self" / "status", "VmSize:") * 1024
        # where the system does not say what is used
        free.append(soft - (used if math.isfinite(used) else 0))
    return max(0.0, min(free))


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


def _field(file: Path, name: str) -> float:
    """A number in a file of the kernel; infinite where it is absent."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return float(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return math.inf


def _container_memory(root: Path) -> list[float]:
    """What each control group above this process leaves of its memory."""
    free = []
    for folder in _groups(root, ""):
        limit = _number(folder / "memory.max")
        free.append(limit - _used(folder, "memory.current", "inactive_file", limit))
    for folder in _groups(root, "memory"):
        limit = _number(folder / "memory.limit_in_bytes")
        limit = math.inf if limit > _V1_UNLIMITED else limit
        free.append(limit - _used(folder, "memory.usage_in_bytes", "total_inactive_file", limit))
    return free


def _used(folder: Path, name: str, cache_name: str, limit: float) -> float:
    """The memory that a control group has, without cached files, which the kernel drops first."""
    used = _number(folder / name)
    cached = _field(folder / "memory.stat", f"{cache_name} ")
    if math.isinf(limit) or math.isinf(used):
        return 0.0
    return used - (cached if math.isfinite(cached) else 0.0)


def _cpu_quota(root: Path) -> float | None:
    """Cores by the quotas of the control groups; None where there is no quota."""
    quotas = []
    for folder in _groups(root, ""):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            quotas.append(float(words[0]) / float(words[1]))
    for folder in _groups(root, "cpu"):
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if 0 < quota < math.inf and 0 < period < math.inf:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _groups(root: Path, controller: str) -> list[Path]:
    """The control groups of this process, from its own to the top; of v2 for an empty name."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            top = root / "sys" / "fs" / "cgroup" / controller
            parts = Path(path.lstrip("/")).parts
            return [top.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return []


def _number(file: Path) -> float:
    words = _words(file)
    try:
        return float(words[0]) if words and words[0] != "max" else math.inf
    except ValueError:
        return math.inf


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
