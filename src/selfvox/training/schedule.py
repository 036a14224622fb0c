"""How long and how fast to optimise."""

from __future__ import annotations

import math
from dataclasses import dataclass

# share of the remaining steps in which the learning rate of a released encoder rises: with an
# abrupt start, Adam's first steps overwrite what was pre-trained (docs/results-log.md)
ENCODER_WARMUP = 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderSchedule:
    """When and how fast a pre-trained encoder is trained, next to new layers."""

    release: int  # the encoder is frozen for so many steps
    factor: float  # its peak learning rate, relative to that of the new layers
    sawtooth: bool  # the rate of the new layers falls to 0 before the release, and rises again


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
    encoder: EncoderSchedule | None = None  # None: all weights have the same learning rate

    def learning_rate_at(self, step: int) -> float:
        """The learning rate: one rise and fall, or of a sawtooth two.

        Args:
            step: number of steps already taken.
        """
        begin = 0
        end = self.steps
        warmup = self.warmup
        if self.encoder is not None and self.encoder.sawtooth:
            if step < self.encoder.release:
                end = self.encoder.release
            else:
                begin = self.encoder.release
                warmup = ENCODER_WARMUP
        return self.learning_rate * _rise_and_fall(step - begin, end - begin, warmup)

    def encoder_rate_at(self, step: int) -> float:
        """The learning rate of a pre-trained encoder: 0, and one rise and fall after its release.

        Args:
            step: number of steps already taken.
        """
        assert self.encoder is not None
        since_release = step - self.encoder.release
        if since_release < 0:
            return 0.0
        peak = self.learning_rate * self.encoder.factor
        return peak * _rise_and_fall(
            since_release, self.steps - self.encoder.release, ENCODER_WARMUP
        )

    def rates_at(self, step: int) -> dict[str, float]:
        """The learning rate of each group of parameters, as it is logged.

        Args:
            step: number of steps already taken.
        """
        rates = {"learning_rate": self.learning_rate_at(step)}
        if self.encoder is not None:
            rates["encoder_learning_rate"] = self.encoder_rate_at(step)
        return rates


def _rise_and_fall(step: int, steps: int, warmup: float) -> float:
    """Linear rise to 1, then half a cosine down to 0 (Loshchilov and Hutter 2017, eq. 5)."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        # the first step already has a rate: at 0 it would change nothing
        return (step + 1) / rise
    angle = math.pi * (step - rise) / max(1, steps - rise)
    return 0.5 * (1 + math.cos(angle))


def count_steps(steps: int, epochs: float | None, scans: int, images_per_step: int) -> int:
    """Number of optimiser steps: `steps`, or the steps that `epochs` passes over the scans take."""
    if epochs is None:
        return steps
    return max(1, math.ceil(epochs * scans / images_per_step))
