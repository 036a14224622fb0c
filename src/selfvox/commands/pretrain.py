"""The verb `pretrain`: an encoder from scans without labels."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from selfvox.data.preparation.build_store import prepared
from selfvox.data.preparation.leakage import seen
from selfvox.data.preparation.store import Store, StoredCase, is_store, open_store
from selfvox.data.sampling.crop_size import (
    axis_of_slices,
    crop_for,
    in_plane,
    median_spacing,
    resolutions,
    spacings,
)
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, Stopped
from selfvox.joint import Joint
from selfvox.models.build import build, check, plan
from selfvox.runs.device import make_fabric
from selfvox.runs.progress import be_quiet, say
from selfvox.runs.run_folder import start
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Pretrain
from selfvox.tasks import from_setting, to_setting
from selfvox.training.learning_curve import draw_curve
from selfvox.training.loop import Plan, train
from selfvox.training.monitor import Watch, views_of
from selfvox.training.pretext_objective import Question
from selfvox.training.pretrain_plan import (
    _announce,
    _warn_of_mirrors,
    crop_with_room,
    refuse_one_alone,
    steps_of,
)
from selfvox.training.probe import choose, probe


def pretrain(settings: Pretrain) -> Path:
    """Pre-train an encoder on scans without labels.

    Returns:
        The run's folder; `encoder/` within it holds what others load.

    Raises:
        SelfvoxError: a setting, a scan, a resource or a number that cannot be; says what to do.
    """
    # what is misspelt, missing or too small is known before any scan is prepared
    from_setting(settings.task, settings.weights).check_batch(settings.batch)
    check(settings.network)
    if settings.probe is not None and not settings.probe.exists():
        raise DataError(
            f"{settings.probe}: no such file or folder to probe with; is the path right?"
        )
    fabric = make_fabric(settings.device, settings.devices, settings.precision)
    if not fabric.is_global_zero:
        be_quiet()
        fabric.launch()  # waits for the first process, which joins when the scans are prepared
    with start(settings.out, settings, resume=settings.resume, main=fabric.is_global_zero) as run:
        made = settings.scans if is_store(settings.scans) else settings.out / "store"
        if fabric.is_global_zero:
            store = prepared(settings.scans, made, settings)
            fabric.launch()
        else:
            store = open_store(made)
        split = store.split()
        held_out = set(split.test) if split else set()
        cases = [case for case in store.cases if case.subject not in held_out]
        if held_out:
            say(f"{len(store.cases) - len(cases)} test scans stay out of pre-training")
        axis = axis_of_slices(settings.slices, cases)
        planned = in_plane(cases, axis)
        task, spacing_mm = from_setting(settings.task, settings.weights), median_spacing(planned)
        crop = crop_with_room(task, settings.crop, planned)
        task = task.suited_to(crop, *spacings(planned), *resolutions(planned))
        refuse_one_alone(task, cases)
        spec = plan(settings.network, task.view_size(crop), spacing_mm)
        torch.manual_seed(settings.seed)
        encoder = build(spec, len(crop), len(store.recipe.channel_names))
        if spec["name"] == "residual" and (isinstance(task, Joint) or settings.probe):
            crop_for(
                crop, planned, encoder.strides[-1]
            )  # whole crops are shown too, and its skips need even maps
        objective = Question(encoder, task)
        if settings.compile:
            encoder.compile()
        how = Plan(
            steps=steps_of(settings, len(cases), fabric.world_size),
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
            "task": to_setting(task),
            "weights": list(task.weights) if isinstance(task, Joint) else None,
            "seen": seen(cases),
            "steps": how.steps,
            "seed": settings.seed,
        }
        if fabric.is_global_zero:
            _announce(task, encoder, crop, cases, how)
            _warn_of_mirrors(task, crop, planned)
            run.depends_on(
                task=card["task"],
                weights=card["weights"],
                network=spec,
                crop=list(crop),
                data=seen(cases),
            )
        watch = None
        if fabric.is_global_zero:
            fabric.to_device(objective)
            view, labelled = task.view_size(crop), _probed(settings, store, held_out)
            probed = (
                functools.partial(probe, encoder, *labelled, crop, settings.seed, axis)
                if labelled
                else None
            )
            watch = Watch(
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
            say(f"encoder: {run.path / 'encoder'}   curve: {run.path / 'curve.png'}")
            flat = f" --slices {settings.slices}" if settings.slices else ""
            say(
                f"next: selfvox finetune LABELLED/ --encoder {run.path}{flat} --labels 10 --out runs/seg"
            )
    return settings.out


def _probed(
    settings: Pretrain, store: Store, held_out: set[str]
) -> tuple[Store, list[StoredCase], list[StoredCase]] | None:
    """The labelled scans of `--probe`, prepared as the others are: those to learn from, those to be scored on."""
    if settings.probe is None:
        return None
    labelled = store
    if settings.probe.resolve() != settings.scans.resolve():
        how = dataclasses.replace(
            settings, source="auto"
        )  # the probe's scans may lie in another layout
        labelled = prepared(settings.probe, settings.out / "probe", how, recipe=store.recipe)
    tests = [case for case in store.cases if case.subject in held_out]
    training, scored = choose(labelled, tests, settings.seed, scans=settings.probe)
    say(f"probe: learns from {len(training)} labelled scans, is scored on {len(scored)} others")
    return labelled, training, scored
