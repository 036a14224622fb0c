"""How long and how fast to optimise."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The settings of one optimisation."""

    steps: int
    batch: int  # samples per device
    accumulate: int = 1  # batches per step
    learning_rate: float
    weight_decay: float
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    clip: float = 1.0  # largest norm of the gradient
    save_every: int  # steps between checkpoints
    seed: int

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter 2017, eq. 5).

        Args:
            step: number of steps already taken.
        """
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            # the first step already has a rate: at 0 it would change nothing
            return self.learning_rate * (step + 1) / rise
        angle = math.pi * (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(angle))


def count_steps(steps: int, epochs: float | None, scans: int, images_per_step: int) -> int:
    """Number of optimiser steps: `steps`, or the steps that `epochs` passes over the scans take."""
    if epochs is None:
        return steps
    return max(1, math.ceil(epochs * scans / images_per_step))
