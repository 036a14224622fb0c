"""The only optimisation loop: it counts steps, not epochs, and resumes to the same weights."""

from __future__ import annotations

import contextlib
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from selfvox.errors import DataError, ResourceError, Stopped
from selfvox.models.synchronised_norm import synchronise_norms
from selfvox.ops.outcome import Batch, Outcome
from selfvox.runs.device import Fabric
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import progress_bar
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import state_tensors
from selfvox.training.batches import training_batches
from selfvox.training.optimizer_step import BeforeUpdate, Stepper, largest_of_devices
from selfvox.training.schedule import TrainingPlan
from selfvox.training.skipped_steps import SkippedSteps
from selfvox.training.stop_after_step import StopSignals
from selfvox.training.time_forecast import TimeForecast
from selfvox.training.training_log import TrainingLog
from selfvox.training.training_state import CheckpointSaver, Position, restore
from selfvox.training.weight_layout import lay_out_weights

LOG_EVERY = 10  # steps between lines of `metrics.jsonl`


class Objective(nn.Module, ABC):
    """What is minimised: a network and the loss of its predictions."""

    min_batch = 1  # images that a loss needs
    loss_label = "loss"  # what the loss is called on the progress line and on the curve

    @abstractmethod
    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """The outcome of one batch.

        Args:
            batch: on the device.
            step: number of steps taken before.
            rng: on the CPU, for augmentation and views.
        """


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a verb does around the steps of the loop.

    Args:
        before_update: called with the number of a step, from 1 on, and the outcome of its last
            batch, when the gradients are there, finite or not. To read a number there is to wait
            for the device.
        learned: called with the outcome of the last batch of each step that was not skipped, in
            their order, some steps later: at the latest before a line is logged.
        after_step: called with the number of steps taken; what it returns is logged with the step.
        left_out: called with the reason for which a sample was replaced by another one.
    """

    before_update: BeforeUpdate = lambda step, outcome: None
    learned: Callable[[Outcome], None] = lambda outcome: None
    after_step: Callable[[int], Mapping[str, float]] = lambda step: {}
    left_out: Callable[[str], None] = lambda reason: None


def train(
    fabric: Fabric,
    run: Run,
    objective: Objective,
    data: Dataset[dict[str, Tensor]],
    plan: TrainingPlan,
    *,
    title: str,
    hooks: Hooks,
    encoder: nn.Module | None = None,
    forecast: TimeForecast | None = None,
    watch: ProcessWatch | None = None,
) -> None:
    """Optimise `objective` for `plan.steps` steps, from the run's last checkpoint if it has one.

    A run that is killed and resumed ends with the same weights as one that is left alone: batches
    and random draws follow from the seed and the step, and a checkpoint has everything else.

    Args:
        fabric: devices and precision.
        run: where metrics and checkpoints go.
        objective: all its parameters are trained.
        data: samples by number, endless.
        plan: how to optimise.
        title: of the progress line.
        hooks: called around the steps.
        encoder: the part of the objective that `plan.encoder` is the schedule of.
        forecast: prints how long the training will take.
        watch: of the processes that train together.

    Raises:
        NumericalError: several steps in a row had no finite loss or gradient.
        DataError: a scan that cannot be read; a checkpoint was written first.
        ResourceError: the device is out of memory, or the disk is full; likewise, if possible.
        Stopped: a signal arrived; a checkpoint was written first.
    """
    if fabric.world_size > 1:
        synchronise_norms(objective)
    # before the optimizer's state is loaded: it goes to the device of the weights
    fabric.to_device(objective)
    lay_out_weights(objective, fabric.device)
    # taken here, so that names do not depend on how fabric wraps the module
    tensors = state_tensors(objective)
    groups = _parameter_groups(objective, encoder if plan.encoder else None)
    optimizer = torch.optim.AdamW(
        groups, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
    )
    restored = restore(fabric, run, objective, optimizer)
    step = restored.step
    skips = SkippedSteps(run.path, plan.steps, restored.skipped)
    module, optimizer = fabric.setup(objective, optimizer)
    saver = CheckpointSaver(fabric, run, tensors, optimizer)
    log = TrainingLog(plan.batch * fabric.world_size, objective.loss_label)

    def read_outcomes() -> None:
        # the CPU waits for the device here
        for outcomes in skips.read():
            log.add(outcomes)
            hooks.learned(outcomes[-1])

    watch = watch or ProcessWatch(fabric)
    with (
        contextlib.closing(training_batches(fabric, data, plan, step, hooks.left_out)) as batches,
        StopSignals() as stop,
        progress_bar(title, plan.steps, step) as bar,
    ):
        stepper = Stepper(
            fabric,
            module,
            optimizer,
            plan,
            _announced(batches, watch),
            log,
            hooks.before_update,
            min_batch=objective.min_batch,
            parts=restored.parts,
        )
        while step < plan.steps:
            began = time.monotonic()
            try:
                with watch.named():
                    skips.add(stepper.take(step))
            except (DataError, ResourceError) as error:
                # weights and buffers are those after the last step
                read_outcomes()
                state = Position(step, skips.total, stepper.parts)
                raise saver.save_after(error, state) from error
            step += 1
            is_last = step == plan.steps
            is_logged = is_last or step % LOG_EVERY == 0
            is_timed = forecast is not None and not forecast.is_done
            if is_logged or is_timed or step % plan.save_every == 0:
                with watch.named():
                    read_outcomes()
            if forecast is not None:
                forecast.add(step, time.monotonic() - began)
            try:
                with log.paused(), watch.busy():
                    extra = dict(hooks.after_step(step))
            except (DataError, ResourceError) as error:
                # of a scan that validates or probes
                read_outcomes()
                raise saver.save_after(error, Position(step, skips.total, stepper.parts)) from error
            if extra or is_logged:
                read_outcomes()
                line = log.flush(plan.rates_at(step - 1), skips.total) | extra
                if fabric.is_global_zero:
                    run.log(step, line)
            bar.advance(log.caption)
            signal_number = largest_of_devices(fabric, stop.number)
            if signal_number or is_last or step % plan.save_every == 0:
                read_outcomes()
                state = Position(step, skips.total, stepper.parts)
                with watch.busy():
                    saver.save(state, patient=not signal_number)
                # no device goes on before the checkpoint is written
                fabric.barrier()
            if signal_number and not is_last:
                raise Stopped(
                    f"{run.path}: stopped by {signal.Signals(signal_number).name} after step "
                    f"{step}, saved; go on with --resume",
                    signal_number,
                )


def _announced(
    batches: Iterator[dict[str, Tensor]], watch: ProcessWatch
) -> Iterator[dict[str, Tensor]]:
    """The batches; of each, the other processes learn that it has arrived."""
    for batch in batches:
        watch.advance()
        yield batch


def _parameter_groups(objective: Objective, encoder: nn.Module | None) -> list[dict[str, Any]]:
    """The parameters of each learning rate, in the order of `TrainingPlan.rates_at`."""
    if encoder is None:
        return [{"params": list(objective.parameters())}]
    encoder_parameters = list(encoder.parameters())
    # by identity: `in` would compare their values
    numbers = {id(parameter) for parameter in encoder_parameters}
    others = [parameter for parameter in objective.parameters() if id(parameter) not in numbers]
    return [{"params": others}, {"params": encoder_parameters}]
