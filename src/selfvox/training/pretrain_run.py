"""One pre-training in an open run: encoder, crops, probe, monitor and the loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable

import torch
from torch import nn

from selfvox.caches import private_folder
from selfvox.data.preparation.case_table import cases_of_subjects, subjects_of
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.store import Store
from selfvox.data.sampling.crops import Crops
from selfvox.models.encoder import Encoder
from selfvox.pretext import PretextTask
from selfvox.runs.device import Fabric
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_to_setting
from selfvox.training.damaged_scans import DamagedScans
from selfvox.training.devices import batch_per_device, started_devices
from selfvox.training.loop import Hooks, train
from selfvox.training.monitor import PROBES, TrainingMonitor, overlapping_views
from selfvox.training.pretext_objective import PretextObjective
from selfvox.training.pretrain_plan import PretrainPlan, pretrain_plan
from selfvox.training.probe import probe, split_probe_cases
from selfvox.training.time_budget import Clock, TimeBudget, same_generators, time_training
from selfvox.training.time_forecast import TimeForecast

ProbeEncoder = Callable[[], dict[str, float]]  # scores of the encoder as it is now


def train_encoder(
    settings: Pretrain,
    store: Store,
    fabric: Fabric,
    watch: ProcessWatch,
    run: Run,
    *,
    task: PretextTask | None,
    encoder: nn.Module | None,
    clock: Clock,
) -> PretrainPlan:
    """Train an encoder in an open run, from its last checkpoint if it has one.

    Args:
        settings: of the verb.
        store: the prepared scans.
        fabric: the processes.
        watch: of the processes.
        run: where it goes.
        task: a task from Python, instead of the setting.
        encoder: a module from Python, instead of the setting `network`.
        clock: seconds since some moment.

    Returns:
        What was planned, with the number of steps that were trained.
    """
    is_main = fabric.is_global_zero
    devices = started_devices(run, fabric)
    plan = pretrain_plan(settings, store, devices, task=task, encoder=encoder)
    plan = plan.with_batch(
        batch_per_device(settings.batch, devices, fabric.world_size, plan.task.min_batch)
    )
    # a resumed run would count others: the default by its device, minutes by their clock
    steps = fabric.broadcast(run.record.get("steps"))
    plan.check_distinct_scans()
    plan.check_pairs()
    # here, so that the weights do not depend on what the preparation drew
    torch.manual_seed(settings.seed)
    network = plan.build_encoder(encoder)
    objective = PretextObjective(network, plan.task)
    if settings.compile:
        # torch's own choice is a folder in /tmp that others can foresee
        cache = private_folder("torchinductor")
        if cache is not None:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        network.compile()
    # the untrained encoder is measured, where the training computes
    fabric.to_device(objective)
    probe_encoder = _probe(plan, network) if is_main else None
    data = Crops(
        store,
        plan.cases,
        plan.crop,
        settings.seed,
        axis=plan.slice_axis,
        pairs=plan.task.pairs_scans,
    )
    if steps is None and settings.minutes is not None:
        budget = TimeBudget(minutes=settings.minutes, clock=clock)
        steps = _steps_within(budget, fabric, run, plan, objective, data, probe_encoder)
    plan = plan.with_steps(fabric.broadcast(steps or plan.training.steps))
    hooks = Hooks()
    if is_main:
        plan.describe(network)
        _record(run, plan)
        hooks = _monitor(run, fabric, plan, network, probe_encoder)
    title = f"pretrain {task_to_setting(plan.task)['name']}"
    # where minutes were given, a trial was timed already
    forecast = None if settings.minutes is not None else TimeForecast(plan.training.steps)
    train(
        fabric,
        run,
        objective,
        data,
        plan.training,
        title=title,
        hooks=hooks,
        forecast=forecast,
        watch=watch,
    )
    if is_main:
        card = plan.card(network)
        decoder = plan.task.decoder(objective.head)
        if decoder is not None:
            # before the encoder, which says that the run is complete
            save_part(run.path / "decoder", "decoder", decoder, {"norm": network.norm})
        save_part(run.path / "encoder", "encoder", network, card.to_json())
    return plan


def _record(run: Run, plan: PretrainPlan) -> None:
    """Add to `run.json` what the result depends on."""
    run.note(steps=plan.training.steps)
    # the card of the encoder lists the scans; a record is written too often for that
    run.depends_on(
        task=task_to_setting(plan.task),
        weights=plan.weights,
        network=plan.network,
        crop=plan.crop,
        data=plan.store.record(plan.cases),
    )


def _steps_within(
    budget: TimeBudget,
    fabric: Fabric,
    run: Run,
    plan: PretrainPlan,
    objective: PretextObjective,
    data: Crops,
    probe_encoder: ProbeEncoder | None,
) -> int:
    """The number of steps that fit in the minutes; a copy of the objective is trained."""
    with same_generators(fabric):
        trial = copy.deepcopy(objective)
        # a copy is not compiled
        if plan.settings.compile:
            trial.encoder.compile()
        step_s, checkpoint_s = time_training(fabric, trial, data, plan.training, run.path, budget)
    probes_s = 0.0
    if probe_encoder is not None:
        with fabric.autocast():
            # the untrained encoder is probed too
            probes_s = (1 + PROBES) * budget.time(probe_encoder)
    return budget.count_steps(step_s + checkpoint_s / plan.training.save_every, probes_s)


def _monitor(
    run: Run,
    fabric: Fabric,
    plan: PretrainPlan,
    encoder: Encoder,
    probe_encoder: ProbeEncoder | None,
) -> Hooks:
    """Measure the encoder during training."""
    views = overlapping_views(
        plan.store,
        plan.cases,
        plan.task.input_size(plan.crop),
        plan.settings.seed,
        plan.slice_axis,
    )
    monitor = TrainingMonitor(run, fabric, encoder, views, plan.training.steps, probe_encoder)
    return Hooks(
        before_update=monitor.before_update,
        learned=monitor.learned,
        after_step=monitor.after_step,
        left_out=DamagedScans(run, len(plan.cases)).note,
    )


def _probe(plan: PretrainPlan, encoder: Encoder) -> ProbeEncoder | None:
    """A probe of the encoder by the labelled scans of `--probe`, prepared as the others are."""
    settings = plan.settings
    if settings.probe is None:
        return None
    labelled = plan.store
    if settings.probe.resolve() != settings.scans.resolve():
        # these scans may have another layout than those of the pre-training
        preparation = dataclasses.replace(settings, source="auto")
        labelled = open_or_build_store(
            settings.probe,
            settings.out / "probe",
            preparation,
            recipe=plan.store.recipe,
            need_labels=True,
        )
    held_out = cases_of_subjects(plan.store.cases, subjects_of(plan.cases), others=True)
    training, test = split_probe_cases(labelled, held_out, settings.seed, scans=settings.probe)
    echo(f"probe: learns from {len(training)} labelled scans, is scored on {len(test)} others")
    return functools.partial(
        probe, encoder, labelled, training, test, plan.crop, settings.seed, plan.slice_axis
    )
