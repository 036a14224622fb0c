"""How long and how fast to optimise."""

from __future__ import annotations

import math
from dataclasses import dataclass

# share of the remaining steps in which the learning rate of a released encoder rises: with an
# abrupt start, Adam's first steps overwrite what was pre-trained (docs/results-log.md)
ENCODER_WARMUP = 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderSchedule:
    """When and how fast a pre-trained encoder is trained, next to the other layers."""

    release: int  # the encoder is frozen for so many steps
    factor: float  # its peak learning rate, relative to that of the other layers
    sawtooth: bool  # the rate of the other layers falls to 0 before the release, and rises again


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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A default length: some steps for any data, and passes over the voxels of the data."""

    steps: int
    passes: float
    most: int  # steps

    def count(self, voxels: int, voxels_per_step: int) -> int:
        """Number of steps.

        Args:
            voxels: of the scans that train.
            voxels_per_step: of all crops of a step.
        """
        return min(self.most, self.steps + math.ceil(self.passes * voxels / voxels_per_step))


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Default lengths of a verb."""

    full: Budget
    cpu: Budget  # hours at most on a few cores, where the full one would take days

    def count(self, voxels: int, voxels_per_step: int, *, on_cpu: bool) -> int:
        """Number of steps; arguments as of `Budget.count`."""
        return (self.cpu if on_cpu else self.full).count(voxels, voxels_per_step)


# 300 scans of 128 cubed in crops of 64 cubed: 32,000 steps of 8, on a CPU 1,600; 200 labelled ones:
# 83,000 steps of 2, on a CPU 5,500. The papers: 1000 and 400 passes over such scans.
# Fine-tuning with one label still gained .05 Dice from 500 to 1500 steps (docs/results-log.md).
PRETRAIN_BUDGETS = Budgets(
    full=Budget(steps=2000, passes=100, most=100_000), cpu=Budget(steps=1000, passes=2, most=5000)
)
FINETUNE_BUDGETS = Budgets(
    full=Budget(steps=3000, passes=100, most=100_000), cpu=Budget(steps=1500, passes=5, most=6000)
)


def describe_length(
    budgets: Budgets, steps: int, voxels: int, voxels_per_step: int, *, cpu_default: bool
) -> str:
    """`500 steps, 3.2 passes over the voxels`, and what a full training would be.

    Args:
        budgets: of the verb.
        steps: of the run.
        voxels: as of `Budget.count`.
        voxels_per_step: likewise.
        cpu_default: whether the steps are the default of a CPU.
    """
    passes = steps * voxels_per_step / voxels
    text = f"{steps} steps, {passes:.3g} passes over the voxels of the scans"
    if cpu_default:
        full = budgets.full.count(voxels, voxels_per_step)
        text += f"; a default for CPUs, on a GPU {full}: ask for it, or for fewer, by --steps"
    return text


def count_steps(steps: int, epochs: float | None, scans: int, images_per_step: int) -> int:
    """Number of optimiser steps: `steps`, or the steps that `epochs` passes over the scans take."""
    if epochs is None:
        return steps
    return max(1, math.ceil(epochs * scans / images_per_step))
