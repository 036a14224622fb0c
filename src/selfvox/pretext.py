"""The contract of a pretext task."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfvox import plugins
from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome


class Panel(NamedTuple):
    """One picture of a preview: a caption and an image of shape (channel, *space)."""

    caption: str
    image: Tensor


@dataclass(frozen=True, kw_only=True)
class PretextTask(ABC):
    """A question that images can answer about themselves: settings only.

    Weights live in the head, random numbers in the generator that is passed in.
    """

    @property
    def name(self) -> str:
        """What a user chooses it by: the name of its file in `tasks/`, or a plug-in's entry point.

        A task of neither kind, which is passed as an object, has that of its class.
        """
        return _name_of(type(self))

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> PretextTask:
        """This task, settled for crops of this size, and for all spacings of the scans, as prepared and as scanned.

        Raises:
            UsageError: the question would be ill-posed, or give itself away, on such images; says what to do.
        """
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges with room for the question, none below the crop's."""
        return tuple(crop)

    @property
    def min_batch(self) -> int:
        """How many images a device's batch must have, so that there is something to ask."""
        return 1

    def check_batch(self, images: int) -> None:
        """Refuse a batch of fewer images.

        Raises:
            UsageError: it has fewer.
        """
        if images < self.min_batch:
            raise UsageError(
                f"task {self.name}: a device's batch of {images} leaves nothing to compare; use "
                f"--batch {self.min_batch} or more"
            )

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges, in voxels, of what the encoder is shown of a crop."""
        return tuple(crop)

    @property
    def needs_distinct_scans(self) -> bool:
        """Whether the question compares scans, so that one alone leaves nothing to ask."""
        return False

    @abstractmethod
    def head(self, encoder: Encoder) -> nn.Module:
        """The layers between an embedding and an answer; thrown away after pre-training."""

    @abstractmethod
    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Make the question for a whole batch, on the images' device.

        Args:
            images: (batch, channel, *space).
            rng: a generator on the CPU, so that every device is asked the same.
            scan: (batch,) number of the scan that each image is from, the same on all devices, for tasks that tell
                images apart; by default each is from one of its own.
        """

    @abstractmethod
    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """How well the network answers what `make_batch` made."""

    @abstractmethod
    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The question as pictures: one row per image, in their order; of several tasks, one per image and task."""


@functools.cache  # a loss asks for it in every step, and a search of all packages takes milliseconds
def _name_of(task: type[PretextTask]) -> str:
    folder, _, file = task.__module__.rpartition(".")
    if folder == "selfvox.tasks":
        return file
    plugin = plugins.plugin_of(plugins.TASKS, task)
    return plugin.name if plugin else task.__name__
