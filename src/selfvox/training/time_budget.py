"""How many steps fit into some minutes: a few steps of a copy of the network are timed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.runs.checkpoints import write_checkpoint
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo, format_seconds
from selfvox.runs.weights import state_tensors
from selfvox.training.batches import training_batches
from selfvox.training.loop import Objective
from selfvox.training.optimizer_step import Stepper
from selfvox.training.schedule import TrainingPlan
from selfvox.training.time_forecast import WARM_UP_STEPS
from selfvox.training.training_log import TrainingLog
from selfvox.training.training_state import Position, checkpoint_of
from selfvox.training.weight_layout import lay_out_weights

Clock = Callable[[], float]  # seconds since some moment

TIMED_STEPS = 5
# on a GPU steps are quick, and the first batches were read ahead: so many times as many steps
ON_GPU = 5
TRIAL = "trial"  # the folder of a run that the timed checkpoint is written to


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """The time of a training, from its start on.

    Args:
        minutes: of the training, what is timed before it included.
        clock: monotonic.
    """

    minutes: float
    clock: Clock = time.monotonic
    began: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return 60 * self.minutes - (self.clock() - self.began)

    def time(self, action: Callable[[], Any]) -> float:
        """Seconds that an action takes."""
        began = self.clock()
        action()
        return self.clock() - began

    def count_steps(self, step_s: float, once_s: float = 0.0) -> int:
        """The number of steps that the time left is enough for, at least one; prints it.

        Args:
            step_s: seconds of a step, with its share of what is done every so many steps.
            once_s: seconds of what is done however long the training is.
        """
        left_s = self.left_s
        steps = max(1, math.floor((left_s - once_s) / step_s)) if step_s else 1
        total_s = once_s + steps * step_s
        # of a step that would need minutes, the first one may already be too long
        too_short = "; the time is too short for more" if total_s > left_s else ""
        echo(
            f"{self.minutes:g} minutes: a step takes {step_s:.3g} s, all else "
            f"{format_seconds(once_s)}: {steps} steps in about {format_seconds(total_s)}{too_short}"
        )
        return steps


def time_training(
    fabric: Fabric,
    objective: Objective,
    data: Dataset[dict[str, Tensor]],
    plan: TrainingPlan,
    run: Path,
    budget: TimeBudget,
) -> tuple[float, float]:
    """Time steps and a checkpoint of a training.

    Args:
        fabric: devices and precision.
        objective: is trained: a copy of that of the run.
        data: of the run.
        plan: of the run; its number of steps and its encoder's schedule do not matter.
        run: folder in which a checkpoint is written, and removed.
        budget: has the clock.

    Returns:
        Seconds of a step and of a checkpoint.
    """
    factor = ON_GPU if fabric.device.type == "cuda" else 1
    warm_up = factor * WARM_UP_STEPS
    last = warm_up + factor * TIMED_STEPS
    # loaders read ahead: as if the training went on
    plan = dataclasses.replace(plan, steps=100 * last, encoder=None)
    fabric.to_device(objective)
    lay_out_weights(objective, fabric.device)
    tensors = state_tensors(objective)
    optimizer: Any = torch.optim.AdamW(
        objective.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    module, optimizer = fabric.setup(objective, optimizer)
    log = TrainingLog(plan.batch)
    with contextlib.closing(training_batches(fabric, data, plan, 0)) as batches:
        stepper = Stepper(
            fabric,
            module,
            optimizer,
            plan,
            batches,
            log,
            lambda step, outcome: None,
            min_batch=objective.min_batch,
        )
        for step in range(warm_up):
            stepper.take(step)

        def take_steps() -> None:
            skipped = [stepper.take(step).is_skipped for step in range(warm_up, last)]
            # when this is read, the device has done what it was given
            torch.stack(skipped).tolist()

        steps_s = budget.time(take_steps)
    checkpoint_s = 0.0
    if fabric.is_global_zero:
        checkpoint = checkpoint_of(Position(last), tensors, optimizer)
        folder = run / TRIAL
        # of a process that was killed meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint_s = budget.time(lambda: write_checkpoint(folder, checkpoint))
        shutil.rmtree(folder)
    return steps_s / (last - warm_up), checkpoint_s


@contextlib.contextmanager
def same_generators(fabric: Fabric) -> Iterator[None]:
    """Afterwards torch's global generators are in the state that they had before."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
