"""The verb `finetune`: a network that segments or classifies, from an encoder and a few labels, or from scratch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from selfvox.data.crops import axis_of_slices, crop_for, in_plane, median_spacing
from selfvox.data.prepare import channels_of, prepared
from selfvox.data.recipe import Recipe
from selfvox.data.seen import leaked, seen
from selfvox.data.split import Split, folds, make, subset, write
from selfvox.data.store import Store, StoredCase
from selfvox.device import make_fabric
from selfvox.errors import DataError, UsageError
from selfvox.models.encoder import Architecture, Encoder, build, check, named, plan
from selfvox.options import as_dict, resolve
from selfvox.progress import say
from selfvox.run import Run, start
from selfvox.settings import FINETUNE_STEPS, Finetune
from selfvox.training.classification import Classification
from selfvox.training.curve import draw_curve
from selfvox.training.goal import Goal
from selfvox.training.loop import Plan, steps_for, train
from selfvox.training.segmentation import Segmentation
from selfvox.weights import first_convolutions, load_encoder, load_into, save_part

VALIDATION_SHARE = 0.2


def finetune(settings: Finetune) -> Path:
    """Fine-tune an encoder with a few labels to segment, or with grades to classify.

    Returns:
        The run's folder; `network/` within it is what `predict` loads.

    Raises:
        SelfvoxError: a setting, a scan, weights, a resource or a number that cannot be; says what to do.
    """
    pretrained = None if settings.encoder.lower() == "none" else load_encoder(Path(settings.encoder))
    if pretrained:
        _check_slices(settings, pretrained[1])
    check(settings.network)
    fabric = make_fabric(settings.device, 1, settings.precision)
    with start(settings.out, settings, resume=settings.resume) as run:
        recipe, preparation = _preparation(settings, pretrained[1]) if pretrained else (None, settings)
        store = prepared(settings.labelled, settings.out / "store", preparation, recipe=recipe, need_labels=True)
        axis = axis_of_slices(settings.slices, store.cases)
        goal = _goal(store, settings)
        split = _split(run, store, goal, settings)
        training, validation = _cases(store, goal, split.train), _cases(store, goal, split.validation)
        steps = steps_for(settings.steps or FINETUNE_STEPS, settings.epochs, len(training), settings.batch)
        torch.manual_seed(settings.seed)
        encoder, network, card, frozen_steps = _network(settings, pretrained, store, training, goal, steps)
        crop = crop_for(settings.crop, in_plane(training, axis), encoder.strides[-1])
        card |= {"crop": list(crop), "slices": settings.slices, "head": settings.head, **goal.card()}
        card["seen"] = seen([*training, *validation], pretrained[1]["seen"] if pretrained else None)
        how = Plan(
            steps=steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            save_every=between_validations(settings.validate_every, steps),
            seed=settings.seed,
        )
        objective = goal.objective(network, training, frozen_steps)
        keeper = _Keeper(run, fabric, goal, network, card, store, validation, settings, how)
        edges = " x ".join(map(str, crop))
        say(f"{len(training)} {goal.scans} to train on, {len(validation)} to validate; crops of {edges} voxels")
        if not validation:
            say(f"none of the {goal.scans} is left to validate on: the last weights are kept")
        if pretrained:
            _tell_leak(pretrained[1], store, split)
        run.depends_on(network=card["network"], crop=list(crop), data=seen([*training, *validation]))
        data = goal.data(store, training, crop, settings.seed)
        train(fabric, run, objective, data, how, title="finetune", after_step=keeper.after_step)
        draw_curve(run.path, run.path / "curve.png")
        say(f"network: {run.path / 'network'} ({keeper.kept})   curve: {run.path / 'curve.png'}")
        say(f"next: selfvox predict {run.path} NEW_SCANS/ --out predictions/")
    return settings.out


def between_validations(asked: int | None, steps: int) -> int:
    """Steps from one validation to the next."""
    return asked or max(1, steps // 5)


class _Keeper:
    """Validates on whole scans every so often, and keeps the weights that the run is to end with."""

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        goal: Goal,
        network: nn.Module,
        card: dict[str, Any],
        store: Store,
        validation: list[StoredCase],
        settings: Finetune,
        how: Plan,
    ):
        self.run, self.fabric, self.goal, self.network, self.card = run, fabric, goal, network, card
        self.store, self.validation, self.how = store, validation, how
        self.best_only = settings.keep == "best" and bool(validation)
        self.name = f"validation_{goal.score}"
        self.step, self.score, self.told = 0, -math.inf, False
        if settings.resume and (run.path / "network" / "network.json").exists():
            before = json.loads((run.path / "network" / "network.json").read_text(encoding="utf-8"))
            self.step = before["step"]
            self.score = -math.inf if before[self.name] is None else before[self.name]

    @property
    def kept(self) -> str:
        """Which weights the run ended with."""
        which = "best by validation" if self.best_only else "last"
        score = f", {self.goal.score.replace('_', ' ')} {self.score:.3f}" if math.isfinite(self.score) else ""
        return f"{which}: step {self.step}{score}"

    def after_step(self, step: int) -> dict[str, float]:
        """Validate when it is time; what was measured."""
        if step % self.how.save_every and step != self.how.steps:
            return {}
        score, measured = self._validate() if self.validation else (-math.inf, {})
        if self.validation and not math.isfinite(score) and not self.told:
            self.told = True
            which = (
                "such steps are kept only where there is no other, the last of them"
                if self.best_only
                else "it is left out"
            )
            say(f"step {step}: {self.goal.score.replace('_', ' ')} of the validation scans is not defined; {which}")
        # of equal scores the later: few scans tie often, and what was trained for longer is surer of them
        if (score, step) >= (self.score, self.step) or not self.best_only:
            self.step, self.score = step, score
            found = {"step": step, self.name: score if math.isfinite(score) else None}
            save_part(self.run.path / "network", "network", self.network, {**self.card, **found})
        return measured

    def _validate(self) -> tuple[float, dict[str, float]]:
        self.network.eval()
        found = self.goal.validate(self.network, self.fabric, self.store, self.validation, self.card["crop"])
        self.network.train()
        return found


def _goal(store: Store, settings: Finetune) -> Goal:
    """What the data can teach: labels, if there are any, else grades."""
    if any(case.has_label for case in store.cases):
        return Segmentation(store, settings)
    return Classification(store, settings)


def _preparation(settings: Finetune, card: dict[str, Any]) -> tuple[Recipe | None, Finetune]:
    """The encoder's recipe; with other channels and `first_conv`, a new one on a grid like the encoder's."""
    recipe = Recipe.from_dict(card["recipe"])
    if settings.first_conv is None or channels_of(settings.labelled, settings.source) == len(recipe.channel_names):
        return recipe, settings
    return None, replace(settings, size=settings.size or recipe.size, spacing=settings.spacing or recipe.spacing_mm)


def _tell_leak(card: dict[str, Any], store: Store, split: Split) -> None:
    """Say which test scans the encoder has seen, by their contents or their subjects."""
    known, count = leaked(store, split, card["seen"])
    if known:
        say(
            f"{len(known)} of {count} test scans ({known[0]} first) or subjects of their name were seen in "
            "pre-training: their scores are not those of unseen scans; pre-train from a store with this split"
        )


def _split(run: Run, store: Store, goal: Goal, settings: Finetune) -> Split:
    """Who trains, validates and tests: the store's split or a new one, its training subjects cut to those asked for."""
    usable = [case for case in store.cases if goal.usable(case)]
    labelled, strata = {case.subject for case in usable}, goal.strata(usable)
    whole = store.split()
    test: tuple[str, ...] = ()
    if settings.fold is not None:
        which, count = map(int, settings.fold.split("/"))
        # the same for every --seed, so that all runs of a fold can be compared
        test = folds(strata or dict.fromkeys(labelled, 0), count, 0)[which - 1]
        if whole is not None:
            say(f"fold {settings.fold} of all {len(labelled)} subjects; the store's own split is not used")
    if settings.fold is not None or whole is None:
        # labels asked for train; of the others, a fifth of all validate
        left = labelled - set(test)
        spare = len(left) - (settings.labels or 1)
        aside = max(0, min(spare, max(1, round(VALIDATION_SHARE * len(left)))))
        whole = dataclasses.replace(make(left, 0, aside, 0, strata), test=test)
    with_labels = Split(
        train=tuple(subject for subject in whole.train if subject in labelled),
        validation=tuple(subject for subject in whole.validation if subject in labelled),
        test=whole.test,
        seed=whole.seed,
    )
    seed = settings.seed if settings.subset_seed is None else settings.subset_seed
    chosen = subset(with_labels, seed, settings.labels, settings.fraction, strata)
    split = Split(train=chosen, validation=with_labels.validation, test=with_labels.test, seed=seed)
    write(split, run.path / "split.json")
    return split


def _cases(store: Store, goal: Goal, subjects: Sequence[str]) -> list[StoredCase]:
    wanted = set(subjects)
    return [case for case in store.cases if case.subject in wanted and goal.usable(case)]


def _network(
    settings: Finetune,
    pretrained: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
    store: Store,
    training: list[StoredCase],
    goal: Goal,
    steps: int,
) -> tuple[Encoder, nn.Module, dict[str, Any], int]:
    """The encoder, the network upon it, what to say of it, and for how many steps its encoder stands still."""
    planned = in_plane(training, axis_of_slices(settings.slices, training))
    d, channels = len(planned[0].shape), len(store.recipe.channel_names)
    if pretrained is None:
        spec = plan(settings.network, crop_for(settings.crop, planned), median_spacing(planned))
        encoder, report = build(spec, d, channels), "from scratch"
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
        encoder = build(spec, d, channels)
        if channels != found["in_channels"]:
            tensors = first_convolutions(tensors, encoder, settings.first_conv)
        loaded = load_into(encoder, tensors, f"{settings.encoder}")
        report = f"loaded {loaded} into the encoder, pre-trained by {found['task']['name']}; none left over"
        if channels != found["in_channels"]:
            report += f"; first convolution from {found['in_channels']} to {channels} channels: {settings.first_conv}"
        frozen_share = {"never": 0.0, "always": 1.0, "warmup": settings.warmup}[settings.freeze]
        frozen_steps = round(frozen_share * steps)
    network = goal.network(encoder, spec)
    fresh = sum(parameter.numel() for parameter in network.parameters())
    fresh -= sum(parameter.numel() for parameter in encoder.parameters())
    say(f"encoder: {report}; upon it {fresh / 1e6:.2f} M values at random")
    if frozen_steps:
        random = ", its weights random: only as a baseline of frozen encoders" if pretrained is None else ""
        say(f"the encoder stands still for {frozen_steps} of {steps} steps{random}")
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
    asked = named(settings.network, d)
    if asked == {"name": "plain"}:  # the default
        return
    if ":" not in str(asked["name"]):
        filled = as_dict(resolve(Architecture, asked, where="network."))
        asked = {name: filled[name] for name in asked}
    for name, value in asked.items():
        has = spec.get(name)
        # a small crop leaves the coarsest levels out
        if value != has and not (name == "channels" and has and value[: len(has)] == has):
            raise UsageError(
                f"network: {settings.encoder} has {name} {has}, not {value}; leave --network out, or pre-train with it"
            )
