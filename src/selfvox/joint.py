"""Several pretext tasks on the same images with one encoder."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import Panel, PretextTask


@dataclass(frozen=True, kw_only=True)
class Joint(PretextTask):
    """Several tasks with the same images and one encoder; the loss is their weighted sum.

    Each has its own head and its own random numbers. Heads, entries of a batch and metrics are
    called after their task, such as `rotation/accuracy`.
    """

    tasks: tuple[PretextTask, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """The names of its tasks, joined by `+`."""
        return "+".join(task.name for task in self.tasks)

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Joint:  # noqa: D102
        configured = []
        for task in self.tasks:
            with rename_options(task.name):
                configured.append(task.configure(crop, *spacings_mm))
        return replace(self, tasks=tuple(configured))

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for each task."""
        edges_by_axis = zip(*(task.min_crop(crop) for task in self.tasks), strict=True)
        return tuple(max(edges) for edges in edges_by_axis)

    @property
    def min_batch(self) -> int:
        """Enough for each task."""
        return max(task.min_batch for task in self.tasks)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Along each axis the smallest input of any task: the encoder must be able to halve it."""
        edges_by_axis = zip(*(task.input_size(crop) for task in self.tasks), strict=True)
        return tuple(min(edges) for edges in edges_by_axis)

    @property
    def needs_distinct_scans(self) -> bool:
        """Whether any task does."""
        return any(task.needs_distinct_scans for task in self.tasks)

    @property
    def pairs_scans(self) -> bool:
        """Whether any task does."""
        return any(task.pairs_scans for task in self.tasks)

    def head(self, encoder: Encoder) -> nn.ModuleDict:
        """A head for each task, by its name."""
        return nn.ModuleDict({task.name: task.head(encoder) for task in self.tasks})

    def decoder(self, head: nn.Module) -> nn.Module | None:
        """That of the first task that has one."""
        assert isinstance(head, nn.ModuleDict)
        decoders = [task.decoder(head[task.name]) for task in self.tasks]
        return next((decoder for decoder in decoders if decoder is not None), None)

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Every task's question about the same images, as `NAME/KEY`."""
        return self.make_pair_batch(images, images, rng, scan)

    def make_pair_batch(
        self, images: Tensor, partners: Tensor, rng: torch.Generator, scan: Tensor | None = None
    ) -> Batch:
        """The same, with a second scan for each image."""
        # one draw: the number of tasks moves no later draw
        seed = int(torch.randint(1 << 62, (), generator=rng))
        batch: Batch = {}
        for task in self.tasks:
            task_rng = task_generator(seed, task.name)
            question = task.make_pair_batch(images, partners, task_rng, scan)
            batch |= {f"{task.name}/{key}": value for key, value in question.items()}
        return batch

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """The weighted sum; `NAME/loss` is the task's own, without its weight."""
        assert isinstance(head, nn.ModuleDict)
        terms = []
        metrics: dict[str, Tensor] = {}
        for task, weight in zip(self.tasks, self.weights, strict=True):
            outcome = task.loss(encoder, head[task.name], _entries_of(task, batch))
            terms.append(weight * outcome.loss)
            task_metrics = {"loss": outcome.loss.detach(), **outcome.metrics}
            metrics |= {f"{task.name}/{key}": value for key, value in task_metrics.items()}
        return Outcome(torch.stack(terms).sum(), metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The rows of every task, image by image; the first caption names the task."""
        rows_by_task = []
        for task in self.tasks:
            rows = task.preview_panels(images, _entries_of(task, batch))
            rows_by_task.append([_caption_row(row, task.name) for row in rows])
        return [row for rows_of_image in zip(*rows_by_task, strict=True) for row in rows_of_image]


def task_generator(seed: int, name: str) -> torch.Generator:
    """One task's random numbers: by its name, so that they do not depend on the other tasks."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    # a seed has 63 bits
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextlib.contextmanager
def rename_options(name: str) -> Iterator[None]:
    """In refusals, call a task's option by its name among several tasks.

    `task.grid` becomes `task.jigsaw.grid`.
    """
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"\btask\.(?=\w)", f"task.{name}.", str(error))) from None


def _entries_of(task: PretextTask, batch: Batch) -> Batch:
    """The entries of one task, under the names that it gave them."""
    prefix = f"{task.name}/"
    return {
        key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)
    }


def _caption_row(row: list[Panel], name: str) -> list[Panel]:
    first = row[0]
    return [Panel(f"{name}: {first.caption}", first.image), *row[1:]]
