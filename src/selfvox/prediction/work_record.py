"""What is recorded of the work on one scan: when, by what, on which device, and its costs."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from selfvox.runs.usage import peak_memory_gb

Facts = dict[str, Any]


@dataclass(frozen=True)
class Workplace:
    """By what scans are predicted, and where; it names no host, user or path.

    Args:
        run: name of the folder of the run.
        device: where the networks compute.
    """

    run: str
    device: torch.device

    def facts(self) -> Facts:
        """What is the same for all scans of a command, and the time."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            device = self.device.type
        if device == "cpu":
            threads = torch.get_num_threads()
            device = f"cpu, {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
        return {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "run": self.run,
            "device": device,
            "selfvox": version("selfvox"),
            "torch": version("torch"),
            "python": platform.python_version(),
        }

    def facts_with_costs(self, began: float) -> Facts:
        """`facts`, and what the work cost that began at this monotonic time."""
        costs: Facts = {
            "seconds": round(time.monotonic() - began, 4),
            **peak_memory_gb(),
        }
        return self.facts() | costs
