"""The verb `pretrain`: an encoder from scans without labels."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from selfvox.caches import private_folder
from selfvox.data.preparation.case_table import cases_of_subjects, subjects_of
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.sampling.crop_size import DIVISOR, check_edges
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, Stopped
from selfvox.models.build import check_network, is_python_class, plans_divisor
from selfvox.models.encoder import Encoder
from selfvox.pretext import PretextTask
from selfvox.runs.device import Fabric, make_fabric
from selfvox.runs.launcher import find_launch
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import echo, silence
from selfvox.runs.run_folder import OnMetrics, Run, open_run, read_metrics
from selfvox.runs.tracker import check_tracker, tracked
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.damaged_scans import DamagedScans
from selfvox.training.devices import batch_per_device, started_devices
from selfvox.training.folder_kind import check_prepared, check_scans
from selfvox.training.follow_plans import follow_plans
from selfvox.training.learning_curve import draw_curve
from selfvox.training.loop import Hooks, train
from selfvox.training.monitor import PROBES, TrainingMonitor, overlapping_views
from selfvox.training.pretext_objective import PretextObjective
from selfvox.training.pretrain_plan import PretrainPlan, pretrain_plan
from selfvox.training.probe import probe, split_probe_cases
from selfvox.training.time_budget import Clock, TimeBudget, same_generators, time_training
from selfvox.training.time_forecast import TimeForecast
from selfvox.training.trend import late_fall, twice_as_long

ProbeEncoder = Callable[[], dict[str, float]]  # scores of the encoder as it is now


def pretrain(
    settings: Pretrain,
    *,
    task: PretextTask | None = None,
    encoder: nn.Module | None = None,
    on_metrics: OnMetrics | None = None,
    clock: Clock = time.monotonic,
    is_alone: bool = False,
) -> Path:
    """Pre-train an encoder on scans without labels.

    Args:
        settings: of the verb.
        task: a task from Python, instead of the setting.
        encoder: a module from Python, instead of the setting `network`; it is trained from the
            weights that it has.
        on_metrics: called with the step and its metrics after each logged step.
        clock: seconds since some moment; times a few steps where the settings have minutes.
        is_alone: train apart from the other processes that torchrun or SLURM started.

    Returns:
        The run's folder; its `encoder/` is what other verbs load.

    Raises:
        SelfvoxError: an invalid setting, scan, resource or number; says what to do.
    """
    launch = None if is_alone else find_launch()
    fabric = make_fabric(settings.device, settings.devices, settings.precision, launch)
    is_main = fabric.is_global_zero  # the first of several processes writes and prints
    if not is_main:
        silence()
    with ProcessWatch(fabric) as watch:
        # processes that this one starts are started when the scans are prepared
        if launch is not None or not is_main:
            watch.join()
        check_settings(settings, task, encoder)
        if launch is not None and launch.processes > 1:
            check_prepared(launch, settings.scans, settings.probe)
        recipe = None
        if encoder is None:
            settings, recipe = follow_plans(settings, settings.scans)
        check_tracker(settings.log_to)
        with (
            open_run(
                settings.out, settings, resume=settings.resume, main=is_main, on_metrics=on_metrics
            ) as run,
            tracked(run, settings.log_to, settings),
        ):
            watch.on_end = lambda verdict: run.note(status="failed", reason=verdict.message)
            try:
                _train(
                    settings,
                    fabric,
                    watch,
                    run,
                    recipe=recipe,
                    task=task,
                    encoder=encoder,
                    clock=clock,
                )
            except Stopped:
                # the first process reports it; torchrun would end that one at the error of another
                if is_main:
                    raise
    return settings.out


def _train(
    settings: Pretrain,
    fabric: Fabric,
    watch: ProcessWatch,
    run: Run,
    *,
    recipe: Recipe | None,
    task: PretextTask | None,
    encoder: nn.Module | None,
    clock: Clock,
) -> None:
    """Train in an open run; the arguments are those of the verb, the recipe that of plans."""
    is_main = fabric.is_global_zero
    store = _open_store(settings, fabric, watch, recipe)
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
        draw_curve(run.path, run.path / "curve.png")
        _suggest_longer(settings, run.path, plan.training.steps)
        _suggest_next(settings, run.path, is_python_class(plan.network))


def check_settings(
    settings: Pretrain, task: PretextTask | None = None, encoder: nn.Module | None = None
) -> None:
    """Refuse what is misspelt, missing or too small before any scan is prepared.

    Raises:
        UsageError: an unknown task, option or network, or a batch that is too small for the task.
        DataError: the probe's scans are missing.
    """
    task = task or task_from_setting(settings.task, settings.weights)
    task.check_batch(settings.batch)
    check_network(settings.network if encoder is None else encoder)
    check_scans(settings.scans)
    _check_crop(settings)
    if settings.probe is not None and not settings.probe.exists():
        raise DataError(
            f"{settings.probe}: no such file or folder to probe with; is the path right?"
        )


def _check_crop(settings: Pretrain) -> None:
    """Refuse edges that no crop has, where the number of axes is known."""
    if settings.crop is not None:
        is_2d = settings.slices is not None or len(settings.crop) == 2
        divisor = (DIVISOR,) * (2 if is_2d else 3)
        check_edges(settings.crop, plans_divisor(settings.network) or divisor)


def _open_store(
    settings: Pretrain, fabric: Fabric, watch: ProcessWatch, recipe: Recipe | None
) -> Store:
    """The prepared scans; the first process prepares them, and the others join it then.

    Args:
        settings: of the verb.
        fabric: the processes.
        watch: of the processes.
        recipe: of plans, which the scans must follow; None: chosen from the scans.
    """
    folder = settings.scans if is_store(settings.scans) else settings.out / "store"
    if not fabric.is_global_zero:
        return open_store(folder)
    store = open_or_build_store(settings.scans, folder, settings, recipe=recipe)
    watch.join()
    test_scans = len(store.cases) - len(store.without_test_subjects())
    if test_scans:
        echo(f"{test_scans} test scans are left out of pre-training")
    return store


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


def _suggest_longer(settings: Pretrain, run: Path, steps: int) -> None:
    """Say if the loss still fell at the end."""
    fall = late_fall(read_metrics(run), steps)
    if fall is not None:
        echo(
            f"the loss was still falling, by {fall:.3g} in the last fifth of the steps: train "
            f"longer, such as {twice_as_long(settings, steps)}"
        )


def _suggest_next(settings: Pretrain, run: Path, needs_object: bool) -> None:
    """Print what was written and the next command, which for an encoder of one's own is Python."""
    echo(f"encoder: {run / 'encoder'}   curve: {run / 'curve.png'}")
    echo(f"look: selfvox report {shlex.quote(str(run))} --out report/")
    if needs_object:
        slices = f", slices='{settings.slices}'" if settings.slices else ""
        echo(
            f"next, in Python: selfvox.finetune('LABELLED/', encoder=selfvox.load_encoder("
            f"{str(run)!r}, network=NETWORK).network, out='runs/seg'{slices})   NETWORK: an object "
            "of the encoder's class, which gets the weights"
        )
        return
    slices = f" --slices {settings.slices}" if settings.slices else ""
    echo(
        f"next: selfvox finetune LABELLED/ --encoder {shlex.quote(str(run))}{slices} --out runs/seg"
    )
