"""The training objective of a pretext task."""

from __future__ import annotations

import torch

from selfvox.models.encoder import Encoder
from selfvox.ops.outcome import Batch, Outcome
from selfvox.pretext import PretextTask
from selfvox.training.loop import Objective


class PretextObjective(Objective):
    """An encoder, the head of a pretext task, and the task."""

    def __init__(self, encoder: Encoder, task: PretextTask):
        super().__init__()
        self.encoder = encoder
        self.head = task.head(encoder)
        self.task = task
        self.min_batch = task.min_batch

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Make the task's batch of the images, and compute its loss."""
        # here and not in the data loader: on the device, for the whole batch at once
        # without pairs, an image is its own partner
        images = batch["image"]
        partners = batch.get("partner", images)
        task_batch = self.task.make_pair_batch(images, partners, rng, batch["subject"])
        return self.task.loss(self.encoder, self.head, task_batch)
