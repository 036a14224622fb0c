"""The training objective of a pretext task."""

from __future__ import annotations

import torch

from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import PretextTask
from selfvox.training.loop import Objective


class PretextObjective(Objective):
    """An encoder, a head and the task that they are asked."""

    def __init__(self, encoder: Encoder, task: PretextTask):
        super().__init__()
        self.encoder, self.head, self.task = encoder, task.head(encoder), task

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Ask the batch's images, and measure the answer."""
        return self.task.loss(
            self.encoder, self.head, self.task.make_batch(batch["image"], rng, batch["subject"])
        )
