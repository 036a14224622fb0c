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

    Weights are in the head, random numbers come from the generator that is passed in. A task
    defines `head`, `make_batch`, `loss` and `preview_panels`; the other methods have defaults.
    """

    @property
    def name(self) -> str:
        """What a user chooses it by: the name of its file in `tasks/`, or a plug-in's entry point.

        A task of neither kind, which is passed as an object, has the name of its class.
        """
        return _name_of(type(self))

    def configure(self, crop: Sequence[int], *spacings_mm: Sequence[float]) -> PretextTask:
        """This task with all choices made that depend on the scans.

        Args:
            crop: edges in voxels.
            spacings_mm: all spacings of the scans, as prepared and as scanned.

        Raises:
            UsageError: on such images the question would be ill-posed, or its answer given away;
                says what to do.
        """
        return self

    def min_crop(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges with room for the question, none below the crop's."""
        return tuple(crop)

    @property
    def min_batch(self) -> int:
        """The smallest batch of one device that leaves something to ask."""
        return 1

    def check_batch(self, images: int) -> None:
        """Refuse a batch of fewer images than `min_batch`.

        Raises:
            UsageError: it has fewer.
        """
        if images < self.min_batch:
            raise UsageError(
                f"task {self.name}: a device's batch of {images} leaves nothing to compare; use "
                f"--batch {self.min_batch} or more"
            )

    def input_size(self, crop: Sequence[int]) -> tuple[int, ...]:
        """Edges, in voxels, of the encoder's input: the crop, or a part of it."""
        return tuple(crop)

    @property
    def needs_distinct_scans(self) -> bool:
        """Whether the question compares scans, so that one scan alone leaves nothing to ask."""
        return False

    @property
    def pairs_scans(self) -> bool:
        """Whether a second scan of the same person belongs to each image; see `make_pair_batch`."""
        return False

    @abstractmethod
    def head(self, encoder: Encoder) -> nn.Module:
        """The layers between an embedding and an answer; only a `decoder` in it is kept."""

    def decoder(self, head: nn.Module) -> nn.Module | None:
        """The part of the head that is a segmenter's decoder; it is saved, and fine-tuned too.

        None by default: the head has no such part.
        """
        return None

    @abstractmethod
    def make_batch(self, images: Tensor, rng: torch.Generator, scan: Tensor | None = None) -> Batch:
        """Make the question for a whole batch, on the images' device.

        Args:
            images: (batch, channel, *space).
            rng: a generator on the CPU, so that every device draws the same numbers.
            scan: (batch,) number of the scan that each image is from, the same on all devices, for
                tasks that compare scans; by default each image is from a different scan.
        """

    def make_pair_batch(
        self, images: Tensor, partners: Tensor, rng: torch.Generator, scan: Tensor | None = None
    ) -> Batch:
        """Make the question from pairs of images; called where `pairs_scans`.

        Args:
            images: (batch, channel, *space).
            partners: the same place of another scan of the person, or the image itself where there
                is none.
            rng: as of `make_batch`.
            scan: as of `make_batch`.
        """
        return self.make_batch(images, rng, scan)

    @abstractmethod
    def loss(self, encoder: Encoder, head: nn.Module, batch: Batch) -> Outcome:
        """The loss and metrics of the network's answers to what `make_batch` made."""

    @abstractmethod
    def preview_panels(self, images: Tensor, batch: Batch) -> list[list[Panel]]:
        """The question as pictures: one row per image, in their order.

        Of several tasks, one row per image and task.
        """


# a loss needs the name in every step, and a search of all packages takes milliseconds
@functools.cache
def _name_of(task: type[PretextTask]) -> str:
    # a task of selfvox is called after its file, for which no package is searched
    folder, _, file = task.__module__.rpartition(".")
    if folder == "selfvox.tasks":
        return file
    plugin = plugins.plugin_of(plugins.TASKS, task)
    return plugin.name if plugin else task.__name__
