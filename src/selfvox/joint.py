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
    """Several tasks asked of the same images and one encoder; the loss is their weighted sum.

    Each has its own head and its own draws. Heads, entries of a batch and metrics are called after their task, such as
    `rotation/accuracy`.
    """

    tasks: tuple[PretextTask, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """The names of its tasks, joined by `+`."""
        return "+".join(task.name for task in self.tasks)

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> Joint:  # noqa: D102
        suited = []
        for task in self.tasks:
            with rename_options(task.name):
                suited.append(task.configure(crop, *spacings_mm))
        return replace(self, tasks=tuple(suited))

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Room for each task."""
        return tuple(map(max, zip(*(task.min_crop(crop) for task in self.tasks), strict=True)))

    @property
    def min_batch(self) -> int:
        """Enough for each task."""
        return max(task.min_batch for task in self.tasks)

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Along each axis the smallest view of any task: the encoder halves no map further than that allows."""
        return tuple(map(min, zip(*(task.input_size(crop) for task in self.tasks), strict=True)))

    @property
    def needs_distinct_scans(self) -> bool:
        """Whether any task does."""
        return any(task.needs_distinct_scans for task in self.tasks)

    def head(self, encoder: Encoder) -> nn.ModuleDict:
        """A head for each task, by its name."""
        return nn.ModuleDict({task.name: task.head(encoder) for task in self.tasks})

    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Every task's question about the same images, as `NAME/KEY`."""
        seed = int(torch.randint(1 << 62, (), generator=rng))
        return {
            f"{task.name}/{key}": value
            for task in self.tasks
            for key, value in task.make_batch(images, task_generator(seed, task.name), scan).items()
        }

    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """The weighted sum; `NAME/loss` is each task's own, without its weight."""
        assert isinstance(head, nn.ModuleDict)
        terms, metrics = [], {}
        for task, weight in zip(self.tasks, self.weights, strict=True):
            name = task.name
            outcome = task.loss(encoder, head[name], _part(batch, name))
            terms.append(weight * outcome.loss)
            own = {"loss": outcome.loss.detach(), **outcome.metrics}
            metrics.update({f"{name}/{key}": value for key, value in own.items()})
        return Outcome(torch.stack(terms).sum(), metrics)

    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The rows of every task, image by image; the first panel says whose question it is."""
        rows = []
        for task in self.tasks:
            name = task.name
            own = task.preview_panels(images, _part(batch, name))
            rows.append(
                [[Panel(f"{name}: {row[0].caption}", row[0].image), *row[1:]] for row in own]
            )
        return [row for of_one_image in zip(*rows, strict=True) for row in of_one_image]


def task_generator(seed: int, name: str) -> torch.Generator:
    """One task's random numbers: by its name, so that they are the same whichever tasks stand beside it."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _part(batch: Batch, name: str) -> Batch:
    """The entries of one task, under the names it gave them."""
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in batch.items()
        if key.startswith(f"{name}/")
    }


@contextlib.contextmanager
def rename_options(name: str) -> Iterator[None]:
    """Refusals that call an option what it is called beside other tasks: `task.grid` is `task.jigsaw.grid`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"\btask\.(?=\w)", f"task.{name}.", str(error))) from None
