"""What a pretext task is, and how one is found by name."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.encoder import Encoder
from selfvox.options import as_dict, resolve

Batch = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a loss has to say."""

    loss: Tensor  # scalar, with gradient
    metrics: dict[str, Tensor]  # scalars, detached; `accuracy` has its `chance` beside it


class Panel(NamedTuple):
    """One picture of a preview: a caption and an image of shape (channel, *space)."""

    caption: str
    image: Tensor


@dataclass(frozen=True, kw_only=True)
class PretextTask(ABC):
    """A question that images can answer about themselves: settings only.

    Weights live in the head, random numbers in the generator that is passed in.
    """

    def suited_to(self, crop: Sequence[int], spacing_mm: Sequence[float]) -> PretextTask:
        """This task, settled for crops of this size and spacing.

        Raises:
            UsageError: the question would be ill-posed, or give itself away, on such images; says what to do.
        """
        return self

    def view_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges, in voxels, of what the encoder is shown of a crop."""
        return tuple(crop)

    @abstractmethod
    def head(self, encoder: Encoder) -> nn.Module:
        """The layers between an embedding and an answer; thrown away after pre-training."""

    @abstractmethod
    def ask(self, images: Tensor, rng: torch.Generator) -> Batch:
        """Make the question for a whole batch, on the images' device.

        Args:
            images: (batch, channel, *space).
            rng: a generator on the CPU, so that every device is asked the same.
        """

    @abstractmethod
    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """How well the network answers what `ask` made."""

    @abstractmethod
    def panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The question as pictures: one row per image."""


TASKS = "selfvox.tasks"  # by name: the folder is looked into, not depended upon


def names() -> list[str]:
    """The tasks there are: the files of `tasks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(TASKS).__path__))


def find(name: str) -> type[PretextTask]:
    """The task called `name`.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in names():
        raise UsageError(f"task: no pretext task is called '{name}'{did_you_mean(name, names())}")
    module = importlib.import_module(f"{TASKS}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, PretextTask) and value.__module__ == module.__name__:
            return value
    raise AssertionError(f"tasks/{name}.py defines no PretextTask")


def from_setting(task: str | Mapping[str, Any]) -> PretextTask:
    """The task that a setting means: its name, or a mapping of `name` and its options."""
    options = {"name": task} if isinstance(task, str) else dict(task)
    return resolve(find(str(options.pop("name", ""))), options, where="task.")


def to_setting(task: PretextTask) -> dict[str, Any]:
    """The mapping that `from_setting` reads back."""
    return {"name": type(task).__module__.rpartition(".")[2], **as_dict(task)}
