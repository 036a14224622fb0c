"""The verb `finetune`: a network that segments or classifies, from an encoder and a few labels, or from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfvox.data.preparation.build_store import count_channels, open_or_build_store
from selfvox.data.preparation.leakage import find_leaks, seen_scans
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.split import Split, choose_subset, make_folds, make_split, write_split
from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crop_size import choose_crop, in_plane_cases, median_spacing, slice_axis
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, check_network, network_settings, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.models.unet import PLAIN, RESIDUAL, Architecture
from selfvox.runs.device import make_fabric
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run, open_run
from selfvox.runs.weights import adapt_first_convolutions, load_strictly, read_encoder
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import FINETUNE_STEPS, Finetune
from selfvox.training.best_checkpoint import BestCheckpoint, validation_interval
from selfvox.training.classification import Classification
from selfvox.training.downstream import DownstreamTask
from selfvox.training.learning_curve import draw_curve
from selfvox.training.loop import TrainingPlan, count_steps, train
from selfvox.training.segmentation import Segmentation

VALIDATION_SHARE = 0.2


def finetune(settings: Finetune) -> Path:
    """Fine-tune an encoder with a few labels to segment, or with grades to classify.

    Returns:
        The run's folder; `network/` within it is what `predict` loads.

    Raises:
        SelfvoxError: a setting, a scan, weights, a resource or a number that cannot be; says what to do.
    """
    pretrained = (
        None if settings.encoder.lower() == "none" else read_encoder(Path(settings.encoder))
    )
    if pretrained:
        _check_slices(settings, pretrained[1])
    check_network(settings.network)
    fabric = make_fabric(settings.device, 1, settings.precision)
    with open_run(settings.out, settings, resume=settings.resume) as run:
        recipe, preparation = (
            _preparation(settings, pretrained[1]) if pretrained else (None, settings)
        )
        store = open_or_build_store(
            settings.labelled, settings.out / "store", preparation, recipe=recipe, need_labels=True
        )
        axis = slice_axis(settings.slices, store.cases)
        goal = _goal(store, settings)
        split = _split(run, store, goal, settings)
        training, validation = (
            _cases(store, goal, split.train),
            _cases(store, goal, split.validation),
        )
        steps = count_steps(
            settings.steps or FINETUNE_STEPS, settings.epochs, len(training), settings.batch
        )
        torch.manual_seed(settings.seed)
        encoder, network, card, frozen_steps = _network(
            settings, pretrained, store, training, goal, steps
        )
        crop = choose_crop(settings.crop, in_plane_cases(training, axis), encoder.strides[-1])
        card |= {
            "crop": list(crop),
            "slices": settings.slices,
            "head": settings.head,
            **goal.card(),
        }
        card["seen"] = seen_scans(
            [*training, *validation], pretrained[1]["seen"] if pretrained else None
        )
        how = TrainingPlan(
            steps=steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            save_every=validation_interval(settings.validate_every, steps),
            seed=settings.seed,
        )
        objective = goal.objective(network, training, frozen_steps)
        keeper = BestCheckpoint(run, fabric, goal, network, card, store, validation, settings, how)
        edges = " x ".join(map(str, crop))
        echo(
            f"{len(training)} {goal.scans} to train on, {len(validation)} to validate; crops of {edges} voxels"
        )
        if not validation:
            echo(f"none of the {goal.scans} is left to validate on: the last weights are kept")
        if pretrained:
            _tell_leak(pretrained[1], store, split)
        run.depends_on(
            network=card["network"], crop=list(crop), data=seen_scans([*training, *validation])
        )
        data = goal.data(store, training, crop, settings.seed)
        train(fabric, run, objective, data, how, title="finetune", after_step=keeper.after_step)
        draw_curve(run.path, run.path / "curve.png")
        echo(f"network: {run.path / 'network'} ({keeper.kept})   curve: {run.path / 'curve.png'}")
        echo(f"next: selfvox predict {run.path} NEW_SCANS/ --out predictions/")
    return settings.out


def _goal(store: Store, settings: Finetune) -> DownstreamTask:
    """What the data can teach: labels, if there are any, else grades."""
    if any(case.has_label for case in store.cases):
        return Segmentation(store, settings)
    return Classification(store, settings)


def _preparation(settings: Finetune, card: dict[str, Any]) -> tuple[Recipe | None, Finetune]:
    """The encoder's recipe; with other channels and `first_conv`, a new one on a grid like the encoder's."""
    recipe = Recipe.from_dict(card["recipe"])
    if settings.first_conv is None or count_channels(settings.labelled, settings.source) == len(
        recipe.channel_names
    ):
        return recipe, settings
    return None, replace(
        settings, size=settings.size or recipe.size, spacing=settings.spacing or recipe.spacing_mm
    )


def _tell_leak(card: dict[str, Any], store: Store, split: Split) -> None:
    """Say which test scans the encoder has seen, by their contents or their subjects."""
    known, count = find_leaks(store, split, card["seen"])
    if known:
        echo(
            f"{len(known)} of {count} test scans ({known[0]} first) or subjects of their name were seen in "
            "pre-training: their scores are not those of unseen scans; pre-train from a store with this split"
        )


def _split(run: Run, store: Store, goal: DownstreamTask, settings: Finetune) -> Split:
    """Who trains, validates and tests: the store's split or a new one, its training subjects cut to those asked for."""
    usable = [case for case in store.cases if goal.usable(case)]
    labelled, strata = {case.subject for case in usable}, goal.strata(usable)
    whole = store.split()
    test: tuple[str, ...] = ()
    if settings.fold is not None:
        which, count = map(int, settings.fold.split("/"))
        # the same for every --seed, so that all runs of a fold can be compared
        test = make_folds(strata or dict.fromkeys(labelled, 0), count, 0)[which - 1]
        if whole is not None:
            echo(
                f"fold {settings.fold} of all {len(labelled)} subjects; the store's own split is not used"
            )
    if settings.fold is not None or whole is None:
        # labels asked for train; of the others, a fifth of all validate
        left = labelled - set(test)
        spare = len(left) - (settings.labels or 1)
        aside = max(0, min(spare, max(1, round(VALIDATION_SHARE * len(left)))))
        whole = dataclasses.replace(make_split(left, 0, aside, 0, strata), test=test)
    with_labels = Split(
        train=tuple(subject for subject in whole.train if subject in labelled),
        validation=tuple(subject for subject in whole.validation if subject in labelled),
        test=whole.test,
        seed=whole.seed,
    )
    seed = settings.seed if settings.subset_seed is None else settings.subset_seed
    chosen = choose_subset(with_labels, seed, settings.labels, settings.fraction, strata)
    split = Split(train=chosen, validation=with_labels.validation, test=with_labels.test, seed=seed)
    write_split(split, run.path / "split.json")
    return split


def _cases(store: Store, goal: DownstreamTask, subjects: Sequence[str]) -> list[StoredCase]:
    wanted = set(subjects)
    return [case for case in store.cases if case.subject in wanted and goal.usable(case)]


def _network(
    settings: Finetune,
    pretrained: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
    store: Store,
    training: list[StoredCase],
    goal: DownstreamTask,
    steps: int,
) -> tuple[Encoder, nn.Module, dict[str, Any], int]:
    """The encoder, the network upon it, what to say of it, and for how many steps its encoder stands still."""
    planned = in_plane_cases(training, slice_axis(settings.slices, training))
    d, channels = len(planned[0].shape), len(store.recipe.channel_names)
    if pretrained is None:
        spec = plan_encoder(
            settings.network, choose_crop(settings.crop, planned), median_spacing(planned)
        )
        encoder, report = build_encoder(spec, d, channels), "from scratch"
        frozen_steps = steps if settings.freeze == "always" else 0
    else:
        tensors, found = pretrained
        spec = found["network"]
        _check_network(settings, spec, d)
        if d != found["spatial_dims"]:
            raise DataError(
                f"{settings.labelled}: holds {d}D scans and {settings.encoder} was trained on {found['spatial_dims']}D "
                "ones; name scans like those"
            )
        encoder = build_encoder(spec, d, channels)
        if channels != found["in_channels"]:
            tensors = adapt_first_convolutions(tensors, encoder, settings.first_conv)
        loaded = load_strictly(encoder, tensors, f"{settings.encoder}")
        # the encoder of a fine-tuning run has no pretext task
        learned_from = (
            found["task"]["name"]
            if found["task"]
            else f"the labels of {Path(settings.encoder).name}"
        )
        report = f"loaded {loaded} into the encoder, pre-trained by {learned_from}; none left over"
        if channels != found["in_channels"]:
            report += f"; first convolution from {found['in_channels']} to {channels} channels: {settings.first_conv}"
        frozen_share = {"never": 0.0, "always": 1.0, "warmup": settings.warmup}[settings.freeze]
        frozen_steps = round(frozen_share * steps)
    network = goal.network(encoder, spec)
    fresh = sum(parameter.numel() for parameter in network.parameters())
    fresh -= sum(parameter.numel() for parameter in encoder.parameters())
    echo(f"encoder: {report}; upon it {fresh / 1e6:.2f} M values at random")
    if frozen_steps:
        random = (
            ", its weights random: only as a baseline of frozen encoders"
            if pretrained is None
            else ""
        )
        echo(f"the encoder stands still for {frozen_steps} of {steps} steps{random}")
    card = {
        "network": spec,
        "spatial_dims": d,
        "in_channels": channels,
        "recipe": store.recipe.to_dict(),
        "encoder": report,
        "seed": settings.seed,
    }
    return encoder, network, card, frozen_steps


def _check_slices(settings: Finetune, card: dict[str, Any]) -> None:
    """Refuse a 2D encoder for a 3D network, and the other way round."""
    before = card.get("slices")
    if before and not settings.slices:
        raise UsageError(
            f"encoder: {settings.encoder} was pre-trained in 2D, on {before} slices, and does not fit a 3D network; "
            f"use --slices {before}"
        )
    if settings.slices and not before:
        raise UsageError(
            f"slices: {settings.encoder} was not pre-trained on slices, so it does not fit a network of slices; leave "
            f"--slices out, or pre-train with --slices {settings.slices}"
        )


def _check_network(settings: Finetune, spec: dict[str, Any], d: int) -> None:
    """Refuse a network that was asked for beside an encoder which is another."""
    asked = network_settings(settings.network, d)
    if asked == {"name": "plain"}:  # the default
        return
    if asked["name"] in (PLAIN.name, RESIDUAL.name):
        filled = as_dict(resolve(Architecture, asked, prefix="network."))
        asked = {name: filled[name] for name in asked}
    for name, value in asked.items():
        has = spec.get(name)
        # a small crop leaves the coarsest levels out
        if value != has and not (name == "channels" and has and value[: len(has)] == has):
            raise UsageError(
                f"network: {settings.encoder} has {name} {has}, not {value}; leave --network out, or pre-train with it"
            )
