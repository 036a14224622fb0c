"""The verb `pretrain`: an encoder from scans without labels."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from torch import nn

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.sampling.crop_size import DIVISOR, check_edges
from selfvox.errors import DataError, Stopped
from selfvox.models.build import check_network, is_python_class, plans_divisor
from selfvox.pretext import PretextTask
from selfvox.runs.device import Fabric, make_fabric
from selfvox.runs.launcher import find_launch
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import echo, silence
from selfvox.runs.run_folder import OnMetrics, Run, open_run, read_metrics
from selfvox.runs.tracker import check_tracker, tracked
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_from_setting
from selfvox.training.folder_kind import check_prepared, check_scans
from selfvox.training.follow_plans import follow_plans
from selfvox.training.learning_curve import draw_curve
from selfvox.training.pretrain_run import train_encoder
from selfvox.training.time_budget import Clock
from selfvox.training.trend import describe_fall


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
    store = _open_store(settings, fabric, watch, recipe)
    plan = train_encoder(
        settings, store, fabric, watch, run, task=task, encoder=encoder, clock=clock
    )
    if fabric.is_global_zero:
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


def _suggest_longer(settings: Pretrain, run: Path, steps: int) -> None:
    """Say if the loss still fell at the end."""
    advice = describe_fall(read_metrics(run), settings, steps)
    if advice is not None:
        echo(advice)


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
