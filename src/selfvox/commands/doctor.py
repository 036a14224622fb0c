"""The verb `doctor`: whether this machine can do a long run, line by line, with the remedy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.preparation.manifest import is_store
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, ResourceError
from selfvox.machine import convolutions, file_system, gpu, limits, versions
from selfvox.machine.check import OUTCOMES, Check, worst
from selfvox.machine.estimate import Estimate, estimate_needs
from selfvox.runs.device import is_cpu
from selfvox.runs.free_resources import memory_bytes, usable_cores
from selfvox.settings.verbs import Doctor, Pretrain
from selfvox.training.batches import GPU_WORKERS

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
# voxels of a large crop, float32; a loader keeps two batches for each of its processes
_CROP_BYTES = 128**3 * 4
_BATCHES_PER_WORKER = 2


def doctor(settings: Doctor) -> list[dict[str, Any]]:
    """Check the machine, print a line for each check, and return the lines as rows.

    Raises:
        DataError: the scans do not exist, or none of them can be read.
        ResourceError: a check failed; the message names it.
    """
    estimate = _estimate(settings)
    checks = _checks(settings, estimate)
    _print(checks)
    failed = [check.about for check in checks if check.outcome == "fail"]
    counts = Counter(check.outcome for check in checks)
    summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    if worst(checks) == "fail":
        raise ResourceError(f"{', '.join(dict.fromkeys(failed))}: {summary}; see the remedies")
    return [dataclasses.asdict(check) for check in checks]


def _checks(settings: Doctor, estimate: Estimate | None) -> list[Check]:
    """All checks, the quick ones first."""
    folder = file_system.existing_parent(settings.out)
    cores = usable_cores()
    worker_bytes = None if estimate is None else estimate.worker_bytes
    workers = cores if estimate is None else min(cores, estimate.scans)
    needed_memory = None if worker_bytes is None else workers * worker_bytes
    batch_bytes = GPU_WORKERS * _BATCHES_PER_WORKER * Pretrain.batch * _CROP_BYTES
    checks = [
        *versions.check_versions(),
        *versions.check_cudnn(versions.cudnn_version()),
        *gpu.check_gpu(settings.device),
        *limits.check_threads(torch.get_num_threads(), cores),
        *limits.check_memory(memory_bytes(), needed_memory, workers),
        *file_system.check_shared_memory(0 if is_cpu(settings.device) else batch_bytes),
        *limits.check_process_limits(),
        *limits.check_cache(),
        *file_system.check_file_system(folder),
        *file_system.check_space(
            folder,
            0 if estimate is None else estimate.store_bytes,
            0 if estimate is None else estimate.scans,
        ),
    ]
    # a device that is missing is reported above
    if not any(check.about == "GPU" and check.outcome == "fail" for check in checks):
        checks += convolutions.check_convolutions(settings.device)
    return checks


def _estimate(settings: Doctor) -> Estimate | None:
    """What the scans need; None without scans, and for a store, which is prepared already."""
    if settings.scans is None or is_store(settings.scans):
        return None
    dataset = find_dataset(settings.scans, settings.source)
    if not dataset.cases:
        raise DataError(f"{dataset.root}: contains no scans; name the folder of the scans")
    return estimate_needs(dataset)


def _print(checks: Sequence[Check]) -> None:
    table = Table(box=SIMPLE)
    for heading in ("", "about", "what was seen", "remedy"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        # Text: rich would take a name in brackets for a style
        table.add_row(
            Text(check.outcome, style=_STYLES[check.outcome]),
            Text(check.about),
            Text(check.text),
            Text(check.remedy),
        )
    Console(highlight=False).print(table)
