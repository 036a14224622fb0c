"""The verb `finetune`: a network that segments, classifies or predicts a number, by labels."""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from selfvox.data.preparation.leakage import find_leaks
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.recipe import Recipe, recipe_of_card
from selfvox.data.preparation.scan_range import ScanRange
from selfvox.data.preparation.split import Split, write_split
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Dataset
from selfvox.errors import Stopped, UsageError
from selfvox.prediction.calibrate_run import calibrate_run
from selfvox.prediction.used_scans import store_of_run
from selfvox.runs.device import Fabric, make_fabric
from selfvox.runs.fold_folder import check_folds, fold_folder, name_networks, write_folds
from selfvox.runs.launcher import find_launch
from selfvox.runs.process_watch import ProcessWatch
from selfvox.runs.progress import echo, silence
from selfvox.runs.run_folder import OnMetrics, Run, is_finished, open_run, read_metrics
from selfvox.runs.tracker import check_tracker, tracked
from selfvox.settings.verbs import Calibrate, Finetune
from selfvox.training.classification import Classification
from selfvox.training.downstream import DownstreamTask
from selfvox.training.finetune_request import check_options, check_request, kind_of_truth
from selfvox.training.finetune_run import FinetuneJob, Trained, train_network
from selfvox.training.finetune_split import cases_of, choose_split
from selfvox.training.folder_kind import check_prepared
from selfvox.training.follow_plans import follow_plans
from selfvox.training.learning_curve import draw_curve
from selfvox.training.network_teacher import teach_by_network
from selfvox.training.pretrained import Pretrained, read_pretrained
from selfvox.training.regression import Regression
from selfvox.training.segmentation import Segmentation
from selfvox.training.time_budget import Clock
from selfvox.training.trend import describe_fall, describe_scores
from selfvox.training.unlabelled import report_gain, teach
from selfvox.uncertainty.calibration import MIN_SUBJECTS
from selfvox.uncertainty.calibration_file import is_calibrated


def finetune(
    settings: Finetune,
    *,
    encoder: nn.Module | None = None,
    on_metrics: OnMetrics | None = None,
    clock: Clock = time.monotonic,
    is_alone: bool = False,
) -> Path:
    """Fine-tune an encoder with a few labels to segment, or with grades to classify.

    Args:
        settings: of the verb.
        encoder: a module from Python, instead of the setting; it starts from the weights that it
            has.
        on_metrics: called with the step and its metrics after each logged step.
        clock: seconds since some moment; times a few steps where the settings have minutes.
        is_alone: train apart from the other processes that torchrun or SLURM started.

    Returns:
        The run's folder, or that of the folds, which `predict` loads.

    Raises:
        SelfvoxError: an invalid setting, scan, resource or number, or weights that do not fit; says
            what to do.
    """
    launch = None if is_alone else find_launch()
    # DDP has to look for layers without a gradient, which those of a frozen encoder are
    is_pretrained = settings.encoder != "none"
    is_frozen_first = settings.freeze == "always" or (is_pretrained and settings.freeze != "never")
    fabric = make_fabric(
        settings.device, settings.devices, settings.precision, launch, partial=is_frozen_first
    )
    is_main = fabric.is_global_zero  # the first of several processes writes and prints
    if not is_main:
        silence()
    with ProcessWatch(fabric) as watch:
        # processes that this one starts are started when the scans are prepared
        if launch is not None or not is_main:
            watch.join()
        if fabric.world_size > 1 and settings.unlabelled is not None:
            raise UsageError("unlabelled: trains on one device; use --devices 1")
        if launch is not None and launch.processes > 1:
            check_prepared(launch, settings.labelled)
        try:
            _train_runs(settings, Processes(fabric, watch), encoder, on_metrics, clock)
        except Stopped:
            # the first process reports it; torchrun would end that one at the error of another
            if is_main:
                raise
    return settings.out


class Processes(NamedTuple):
    """The processes that train together."""

    fabric: Fabric
    watch: ProcessWatch


def _train_runs(
    settings: Finetune,
    processes: Processes,
    encoder: nn.Module | None,
    on_metrics: OnMetrics | None,
    clock: Clock,
) -> None:
    """Train one network, or one for each fold. The arguments are the verb's."""
    if settings.folds is None:
        _train_run(settings, processes, encoder, on_metrics, clock)
        return
    out = settings.out
    check_folds(out)
    for number in range(1, settings.folds + 1):
        run = replace(settings, out=fold_folder(out, number))
        if settings.resume and is_finished(run.out, run):
            echo(f"fold {number} of {settings.folds}: is finished")
            continue
        echo(f"fold {number} of {settings.folds}: {run.out}")
        # every fold starts from the weights that the encoder has
        _train_run(run, processes, copy.deepcopy(encoder), on_metrics, clock, number)
    if not processes.fabric.is_global_zero:
        return
    write_folds(out, settings.folds)
    _calibrate(settings, out)


def _train_run(
    settings: Finetune,
    processes: Processes,
    encoder: nn.Module | None,
    on_metrics: OnMetrics | None,
    clock: Clock,
    fold: int | None = None,
) -> None:
    """Train one network; of `settings.folds`, that of one fold. The arguments are the verb's."""
    fabric, watch = processes
    is_main = fabric.is_global_zero
    pretrained = None if encoder is not None else read_pretrained(settings.encoder)
    recipe = None
    if pretrained is None and encoder is None:
        settings, recipe = follow_plans(settings, settings.labelled)
    dataset = check_request(settings, pretrained, encoder)
    check_tracker(settings.log_to)
    with (
        open_run(
            settings.out, settings, resume=settings.resume, main=is_main, on_metrics=on_metrics
        ) as run,
        tracked(run, settings.log_to, settings),
    ):
        watch.on_end = lambda verdict: run.note(status="failed", reason=verdict.message)
        # all folds have one store, and one of the unlabelled scans
        place = settings.out if fold is None else settings.out.parent
        if is_main:
            store = _open_store(settings, pretrained, dataset, place / "store", recipe)
            watch.join()
        else:
            folder = settings.labelled if is_store(settings.labelled) else place / "store"
            store = open_store(folder)
        task = _downstream_task(store, settings)
        split = choose_split(store, task, settings, fold)
        if is_main:
            write_split(split, run.path / "split.json")
        job = FinetuneJob(
            settings=settings,
            fabric=fabric,
            store=store,
            task=task,
            training=cases_of(store, task, split.train),
            validation=cases_of(store, task, split.validation),
            start=encoder if pretrained is None else pretrained,
            clock=clock,
            watch=watch,
        )
        if pretrained:
            _report_leaks(pretrained, store, split)
            _report_unlike(pretrained, store)
        teaching = teach(run, settings, store, split, job.training, job.validation, place)
        job = replace(job, copies=teaching.copies)
        pseudo_labels = None
        if teaching.scans is not None:
            job = replace(job, trainings=settings.rounds + 1)
            pseudo_labels = teach_by_network(run, job, teaching.scans)
            if pseudo_labels is None:
                teaching = replace(teaching, scans=None)
        trained = train_network(job, run, run.record.get("steps"), pseudo_labels)
        if is_main:
            _report(settings, run, job, trained)
            report_gain(run.path, teaching, len(job.validation))
            if fold is None:
                _finish(settings, run, job)


def _report(settings: Finetune, run: Run, job: FinetuneJob, trained: Trained) -> None:
    """Draw the curve, and print where the network is."""
    curve = run.path / "curve.png"
    draw_curve(run.path, curve, trained.loss_label)
    checkpoint = trained.checkpoint
    echo(f"network: {checkpoint.folder} ({checkpoint.caption})   curve: {curve}")
    _report_trend(settings, run.path, job.task, trained.built.steps)
    checkpoint.lost_classes.report()


def _finish(settings: Finetune, run: Run, job: FinetuneJob) -> None:
    """Calibrate a classifier, and print what to do next."""
    if isinstance(job.task, Segmentation):
        _suggest_calibrate(settings, run.path, job.validation)
    elif job.validation:
        _calibrate(settings, run.path)
        return
    _suggest_predict(run.path)


def _calibrate(settings: Finetune, out: Path) -> None:
    """Calibrate a classifier, which is quick, or the networks of all folds; says what comes next.

    Scans are measured by a network that was not trained on them. Prints why where it cannot be.
    """
    runs = name_networks([out])
    if all(map(is_calibrated, runs)):
        echo("the networks are calibrated")
        _suggest_predict(out)
        return
    labelled = None
    store = store_of_run(runs[0])
    # the store has no labels on the scans' own grids
    if store is not None and any(case.geometry.is_resampled for case in store.cases):
        has_labels = any(case.has_label for case in store.cases)
        labelled = settings.labelled if has_labels and not is_store(settings.labelled) else None
    try:
        calibrate_run(
            Calibrate(
                run=out,
                labelled=labelled,
                source=settings.source if labelled else "auto",
                device=settings.device,
                precision=settings.precision,
            )
        )
    except UsageError as error:
        echo(f"not calibrated: {error}")
        _suggest_predict(out)


def _suggest_calibrate(settings: Finetune, run: Path, validation: Sequence[StoredCase]) -> None:
    if len({case.subject for case in validation}) < MIN_SUBJECTS:
        return
    command = f"selfvox calibrate {shlex.quote(str(run))}"
    # the store has no labels on the scans' own grids
    if any(case.geometry.is_resampled for case in validation):
        is_prepared = is_store(settings.labelled)
        command += " LABELLED/" if is_prepared else f" {shlex.quote(str(settings.labelled))}"
    echo(f"how far to trust it: {command}")


def _suggest_predict(run: Path) -> None:
    echo(f"look: selfvox report {shlex.quote(str(run))} --out report/")
    echo(f"next: selfvox predict {shlex.quote(str(run))} NEW_SCANS/ --out predictions/")


def _open_store(
    settings: Finetune,
    pretrained: Pretrained | None,
    dataset: Dataset | None,
    folder: Path,
    recipe: Recipe | None,
) -> Store:
    """The prepared scans; the encoder's recipe, or that of plans, is theirs too."""
    grid = None
    if pretrained is not None:
        recipe = recipe_of_card(pretrained.card, str(pretrained.run))
        channels = len(recipe.channel_names)
        if settings.first_conv is not None and _count_channels(settings, dataset) != channels:
            # intensities of other channels need a new recipe, by default on the encoder's grid
            if settings.size is None and settings.spacing is None:
                grid = recipe
            recipe = None
    return open_or_build_store(
        settings.labelled,
        folder,
        settings,
        recipe=recipe,
        need_labels=True,
        dataset=dataset,
        grid=grid,
    )


def _count_channels(settings: Finetune, dataset: Dataset | None) -> int:
    names = (
        open_store(settings.labelled).recipe.channel_names
        if dataset is None
        else dataset.channel_names
    )
    return len(names)


def _downstream_task(store: Store, settings: Finetune) -> DownstreamTask:
    """Segmentation where there are labels, else classification, or regression of targets."""
    truth = kind_of_truth(store.cases) or "labels"
    check_options(settings, store.path, truth)
    if truth == "targets":
        return Regression(store, settings)
    return Classification(store, settings) if truth == "grades" else Segmentation(store, settings)


def _report_trend(settings: Finetune, run: Path, task: DownstreamTask, steps: int) -> None:
    """Say if the run still improved at its end, or if the last weights are not the best."""
    metric = "dice_mean" if task.score == "dice" else task.score
    lines = read_metrics(run)
    if any(metric in line for line in lines):
        for advice in describe_scores(lines, metric, settings, steps):
            echo(advice)
    elif isinstance(task, Segmentation):
        fall = describe_fall(lines, settings, steps)
        if fall is not None:
            echo(f"no scan validates, and {fall}")


def _report_leaks(pretrained: Pretrained, store: Store, split: Split) -> None:
    """Print which test scans the encoder has seen, by their contents or their subjects."""
    leaks = find_leaks(store, split, pretrained.card.seen)
    if leaks.ids:
        echo(
            f"pre-training has seen {leaks}; their scores are not those of unseen scans; "
            f"{leaks.remedy_for_names}pre-train from a store with this split"
        )


def _report_unlike(pretrained: Pretrained, store: Store) -> None:
    """Say how many scans are far outside of those that the encoder was trained on."""
    spans = pretrained.card.scans
    channels = len(store.recipe.channel_names)
    if spans is None or pretrained.card.in_channels != channels:
        return
    profiles = [case.profile for case in store.cases if case.profile is not None]
    unlike = ScanRange.from_dict(spans).describe_far(profiles)
    if unlike is not None:
        echo(
            f"unlike the scans that the encoder was trained on: {unlike}; its features may help "
            "little, compare with --encoder none"
        )
