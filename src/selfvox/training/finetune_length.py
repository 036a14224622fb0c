"""How many steps a fine-tuning takes: as asked for, by default, or as many as fit in minutes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.runs.device import Fabric, is_cpu
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import DownstreamTask
from selfvox.training.kept_weights import VALIDATIONS, Validator
from selfvox.training.lost_classes import EARLY
from selfvox.training.schedule import (
    FINETUNE_BUDGETS,
    TrainingPlan,
    count_steps,
    describe_length,
)
from selfvox.training.time_budget import Clock, TimeBudget, same_generators, time_training
from selfvox.training.whole_scan_task import WholeScanTask


@dataclass(frozen=True, kw_only=True)
class FinetuneLength:
    """Counts the steps of a fine-tuning."""

    settings: Finetune
    task: DownstreamTask
    store: Store
    training: Sequence[StoredCase]
    validation: Sequence[StoredCase]
    looked_at: Sequence[StoredCase]  # where none validates
    fabric: Fabric
    run: Path  # its folder
    clock: Clock  # times the steps, where the settings have minutes
    devices: int = 1  # that the run was started with

    def count(self, recorded: int | None, crop: Sequence[int], network: nn.Module) -> int:
        """The number of steps, printed with what it means; as recorded where the run was started.

        Args:
            recorded: of a run that is resumed.
            crop: edges in voxels.
            network: of the run; only a copy is trained.
        """
        settings = self.settings
        on_cpu = is_cpu(settings.device)
        crop_voxels = math.prod(crop)
        images_per_step = settings.batch * self.devices
        per_step = images_per_step * crop_voxels
        # a scan that is smaller than the crop, or resized to it, is one crop
        voxels = sum(max(math.prod(case.shape), crop_voxels) for case in self.training)
        if isinstance(self.task, WholeScanTask):
            voxels = len(self.training) * crop_voxels
        is_default = settings.steps is settings.epochs is settings.minutes is None
        if recorded is not None:
            steps = recorded
        elif settings.minutes is not None:
            # of all folds together
            minutes = settings.minutes / (settings.folds or 1)
            steps = self._steps_within(minutes, crop, network)
        else:
            default = FINETUNE_BUDGETS.count(voxels, per_step, on_cpu=on_cpu)
            steps = count_steps(
                settings.steps or default, settings.epochs, len(self.training), images_per_step
            )
        cpu_default = is_default and on_cpu
        echo(describe_length(FINETUNE_BUDGETS, steps, voxels, per_step, cpu_default=cpu_default))
        return steps

    def _steps_within(self, minutes: float, crop: Sequence[int], network: nn.Module) -> int:
        """Time a copy of the network; the run is not changed by it."""
        settings = self.settings
        budget = TimeBudget(minutes=minutes, clock=self.clock)
        with same_generators(self.fabric):
            trial = copy.deepcopy(network)
            # an encoder that is frozen at first is timed as it is later
            frozen_steps = 10**9 if settings.freeze == "always" else 0
            plan = TrainingPlan(
                steps=1,
                batch=settings.batch,
                learning_rate=self.task.learning_rate,
                weight_decay=settings.weight_decay,
                save_every=1,
                seed=settings.seed,
            )
            step_s, checkpoint_s = time_training(
                self.fabric,
                self.task.objective(trial, self.training, frozen_steps),
                self.task.data(self.store, self.training, crop, settings.seed),
                plan,
                self.run,
                budget,
            )
            # a checkpoint is written with every validation
            validation_s = checkpoint_s + self._validation_seconds(budget, crop, trial)
        if settings.validate_every is not None:
            return budget.count_steps(step_s + validation_s / settings.validate_every)
        return budget.count_steps(step_s, VALIDATIONS * validation_s)

    def _validation_seconds(
        self, budget: TimeBudget, crop: Sequence[int], network: nn.Module
    ) -> float:
        """Seconds of a validation: those of the scan of median size, times their number.

        Or of a look for lost classes, of which there are none early in the run.
        """
        cases = self.validation or self.looked_at
        if not cases:
            return 0.0
        share = 1 if self.validation else 1 - EARLY
        by_size = sorted(cases, key=lambda case: math.prod(case.shape))
        validator = Validator(
            task=self.task,
            network=network,
            fabric=self.fabric,
            store=self.store,
            cases=[by_size[len(by_size) // 2]],
            crop=crop,
        )
        # the first one loads libraries
        validator.measure()
        return share * len(cases) * budget.time(validator.measure)
