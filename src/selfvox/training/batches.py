"""Batches of training samples: each is a function of the seed, the device and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.runs.device import Fabric
from selfvox.training.readers import read_batches
from selfvox.training.schedule import TrainingPlan

# what augmentations draw by; from a GPU, the CPU would wait for it
USED_ON_CPU = ("spacing",)
GPU_WORKERS = 4  # processes that read samples while a GPU trains


def batch_generator(seed: int, rank: int, step: int, micro_batch: int = 0) -> torch.Generator:
    """The random generator of one batch, on the CPU.

    It depends on these numbers alone, so a resumed run draws what an uninterrupted one does.

    Args:
        seed: of the run.
        rank: of the device.
        step: of the optimiser, from 0 on.
        micro_batch: which of the step's accumulated batches.
    """
    mixed = 0
    for number in (seed, rank, step, micro_batch):
        # one round of SplitMix64 (Steele et al. 2014) per number: neighbouring numbers give
        # unrelated streams
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % (1 << 64)
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % (1 << 64)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % (1 << 63))


def training_batches(
    fabric: Fabric,
    data: Dataset[dict[str, Tensor]],
    plan: TrainingPlan,
    first_step: int,
    report_left_out: Callable[[str], None] = lambda text: None,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield this device's batches from `first_step` to the last step, on the device.

    Batch `b` of device `r` has `plan.batch` samples from `(b * devices + r) * plan.batch` on.

    Args:
        fabric: devices.
        data: samples by number.
        plan: size and number of the batches.
        first_step: the first step to be taken.
        report_left_out: called with each `left_out` of a sample that is not empty.

    Raises:
        DataError: a scan that cannot be read, and cannot be replaced.
        ResourceError: a process that reads scans died.
    """

    def sample_numbers() -> Iterator[list[int]]:
        for number in range(first_step * plan.accumulate, plan.steps * plan.accumulate):
            first = (number * fabric.world_size + fabric.global_rank) * plan.batch
            yield list(range(first, first + plan.batch))

    on_gpu = fabric.device.type == "cuda"
    # while the CPU trains, a process that reads would only take a core from it
    workers = GPU_WORKERS if on_gpu else 0
    for batch in read_batches(data, _Sampler(sample_numbers), workers, pin_memory=on_gpu):
        for text in filter(None, batch.pop("left_out", [])):
            report_left_out(text)
        kept = {name: batch.pop(name) for name in USED_ON_CPU if name in batch}
        yield {**fabric.to_device(batch), **kept}


class _Sampler:
    """Lists of sample numbers, made on demand: a run's samples are too many for one list."""

    def __init__(self, lists: Callable[[], Iterator[list[int]]]):
        self.lists = lists

    def __iter__(self) -> Iterator[list[int]]:
        return self.lists()
