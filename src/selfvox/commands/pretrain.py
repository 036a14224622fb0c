"""The verb `pretrain`: an encoder from scans without labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from selfvox.data.preparation.build_store import open_or_build_store
from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.store import Store, StoredCase, is_store, open_store
from selfvox.data.sampling.crop_size import (
    choose_crop,
    distinct_resolutions,
    distinct_spacings,
    in_plane_cases,
    median_spacing,
    slice_axis,
)
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, Stopped
from selfvox.joint import Joint
from selfvox.models.build import build_encoder, check_network, plan_encoder
from selfvox.runs.device import make_fabric
from selfvox.runs.progress import echo, silence
from selfvox.runs.run_folder import open_run
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import task_from_setting, task_to_setting
from selfvox.training.learning_curve import draw_curve
from selfvox.training.loop import TrainingPlan, train
from selfvox.training.monitor import TrainingMonitor, views_of
from selfvox.training.pretext_objective import PretextObjective
from selfvox.training.pretrain_plan import (
    announce,
    check_distinct_scans,
    pretext_crop,
    pretrain_steps,
    warn_of_mirroring,
)
from selfvox.training.probe import probe, split_probe_cases


def pretrain(settings: Pretrain) -> Path:
    """Pre-train an encoder on scans without labels.

    Returns:
        The run's folder; `encoder/` within it holds what others load.

    Raises:
        SelfvoxError: a setting, a scan, a resource or a number that cannot be; says what to do.
    """
    # what is misspelt, missing or too small is known before any scan is prepared
    task_from_setting(settings.task, settings.weights).check_batch(settings.batch)
    check_network(settings.network)
    if settings.probe is not None and not settings.probe.exists():
        raise DataError(
            f"{settings.probe}: no such file or folder to probe with; is the path right?"
        )
    fabric = make_fabric(settings.device, settings.devices, settings.precision)
    if not fabric.is_global_zero:
        silence()
        fabric.launch()  # waits for the first process, which joins when the scans are prepared
    with open_run(
        settings.out, settings, resume=settings.resume, main=fabric.is_global_zero
    ) as run:
        made = settings.scans if is_store(settings.scans) else settings.out / "store"
        if fabric.is_global_zero:
            store = open_or_build_store(settings.scans, made, settings)
            fabric.launch()
        else:
            store = open_store(made)
        cases = store.without_test_subjects()
        if len(cases) < len(store.cases):
            echo(f"{len(store.cases) - len(cases)} test scans stay out of pre-training")
        axis = slice_axis(settings.slices, cases)
        planned = in_plane_cases(cases, axis)
        task, spacing_mm = (
            task_from_setting(settings.task, settings.weights),
            median_spacing(planned),
        )
        crop = pretext_crop(task, settings.crop, planned)
        task = task.configure(crop, *distinct_spacings(planned), *distinct_resolutions(planned))
        check_distinct_scans(task, cases)
        spec = plan_encoder(settings.network, task.input_size(crop), spacing_mm)
        torch.manual_seed(settings.seed)
        encoder = build_encoder(spec, len(crop), len(store.recipe.channel_names))
        if spec["name"] == "residual" and (isinstance(task, Joint) or settings.probe):
            choose_crop(
                crop, planned, encoder.strides[-1]
            )  # whole crops are shown too, and its skips need even maps
        objective = PretextObjective(encoder, task)
        if settings.compile:
            encoder.compile()
        how = TrainingPlan(
            steps=pretrain_steps(settings, len(cases), fabric.world_size),
            batch=settings.batch,
            accumulate=settings.accumulate,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            save_every=settings.save_every,
            seed=settings.seed,
        )
        card: dict[str, Any] = {
            "network": spec,
            "spatial_dims": encoder.spatial_dims,
            "in_channels": encoder.in_channels,
            "crop": list(crop),
            "slices": settings.slices,
            "spacing_mm": list(spacing_mm),
            "recipe": store.recipe.to_dict(),
            "task": task_to_setting(task),
            "weights": list(task.weights) if isinstance(task, Joint) else None,
            "seen": seen_scans(cases),
            "steps": how.steps,
            "seed": settings.seed,
        }
        if fabric.is_global_zero:
            announce(task, encoder, crop, cases, how)
            warn_of_mirroring(task, crop, planned)
            run.depends_on(
                task=card["task"],
                weights=card["weights"],
                network=spec,
                crop=list(crop),
                data=seen_scans(cases),
            )
        watch = None
        if fabric.is_global_zero:
            fabric.to_device(objective)
            view, labelled = task.input_size(crop), _probed(settings, store, cases)
            probed = (
                functools.partial(probe, encoder, *labelled, crop, settings.seed, axis)
                if labelled
                else None
            )
            watch = TrainingMonitor(
                run,
                fabric,
                encoder,
                views_of(store, cases, view, settings.seed, axis),
                how.steps,
                probed,
            )
        data, title = (
            Crops(store, cases, crop, settings.seed, axis=axis),
            f"pretrain {card['task']['name']}",
        )
        try:
            train(
                fabric,
                run,
                objective,
                data,
                how,
                title=title,
                after_step=watch.after_step if watch else None,
                before_update=watch.before_update if watch else None,
            )
        except Stopped:
            if fabric.is_global_zero:
                raise
            return settings.out  # the first process tells
        if fabric.is_global_zero:
            save_part(run.path / "encoder", "encoder", encoder, card)
            draw_curve(run.path, run.path / "curve.png")
            echo(f"encoder: {run.path / 'encoder'}   curve: {run.path / 'curve.png'}")
            flat = f" --slices {settings.slices}" if settings.slices else ""
            echo(
                f"next: selfvox finetune LABELLED/ --encoder {run.path}{flat} --labels 10 --out runs/seg"
            )
    return settings.out


def _probed(
    settings: Pretrain, store: Store, cases: Sequence[StoredCase]
) -> tuple[Store, list[StoredCase], list[StoredCase]] | None:
    """The labelled scans of `--probe`, prepared as the others are: those to learn from, those to be scored on.

    Subjects of the store that `cases`, the scans of the pre-training, leave out are for testing.
    """
    if settings.probe is None:
        return None
    labelled = store
    if settings.probe.resolve() != settings.scans.resolve():
        how = dataclasses.replace(
            settings, source="auto"
        )  # the probe's scans may lie in another layout
        labelled = open_or_build_store(
            settings.probe, settings.out / "probe", how, recipe=store.recipe
        )
    subjects = {case.subject for case in cases}
    tests = [case for case in store.cases if case.subject not in subjects]
    training, scored = split_probe_cases(labelled, tests, settings.seed, scans=settings.probe)
    echo(f"probe: learns from {len(training)} labelled scans, is scored on {len(scored)} others")
    return labelled, training, scored
