"""Cores and memory that this process may use: of the machine, its container and its limits."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

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
