"""What work costs: seconds of the processor or of a GPU, and the most memory it had."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
# of repeated work: most memory, and everything else together
_PEAKS = ("peak_memory_mib", "peak_gpu_memory_mib")


class Meter:
    """Measures from its creation on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._cpu_s = _cpu_seconds()
        # Linux forgets the peak of the process so far
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")
        if _has_gpu():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float]:
        """What was used since.

        Returns:
            `seconds`; `cpu_s`, of all threads and finished processes; `peak_memory_mib` of this
            process. If it had memory of a GPU also `gpu_s`, the seconds it was kept for this work,
            and `peak_gpu_memory_mib`.
        """
        seconds = time.monotonic() - self._began
        usage = {
            "seconds": round(seconds, 1),
            "cpu_s": round(_cpu_seconds() - self._cpu_s, 1),
            "peak_memory_mib": round(_peak_mib()),
        }
        if _has_gpu():
            peak_mib = torch.cuda.max_memory_allocated() / 2**20
            if peak_mib > 0:
                usage |= {"gpu_s": round(seconds, 1), "peak_gpu_memory_mib": round(peak_mib)}
        return usage


def joined(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """What two parts of one work used: seconds are added, of peaks the higher counts."""
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: max(first.get(name, 0), second.get(name, 0))
        if name in _PEAKS
        else round(first.get(name, 0) + second.get(name, 0), 1)
        for name in names
    }


def peak_memory_gb() -> dict[str, float]:
    """The most memory that this process has had, and of a GPU, if it uses one."""
    memory = {"peak_memory_gb": round(_peak_bytes() / 1e9, 3)}
    if _has_gpu():
        memory["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return memory


def _has_gpu() -> bool:
    """Whether this process uses a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_mib() -> float:
    """Most memory of this process since its peak was forgotten, or since it began."""
    try:
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return _peak_bytes() / 2**20


def _peak_bytes() -> int:
    """Most memory of this process since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # in kilobytes, but in bytes on macOS
    return peak if sys.platform == "darwin" else 1024 * peak
