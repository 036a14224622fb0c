"""The verb `finetune`: a segmentation network from an encoder and a few labels, or from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox import losses
from selfvox.data.crops import Crops, crop_for, median_spacing, most_uneven_spacing, seen
from selfvox.data.prepare import prepared
from selfvox.data.recipe import Recipe
from selfvox.data.split import Split, make, read_if_there, subset, write
from selfvox.data.store import Store, StoredCase
from selfvox.device import make_fabric
from selfvox.errors import DataError, UsageError
from selfvox.metrics import dice_per_class
from selfvox.models.encoder import Architecture, build, plan
from selfvox.models.network import Segmenter, segment_whole
from selfvox.options import as_dict, resolve
from selfvox.pretext import Batch, Outcome
from selfvox.progress import say
from selfvox.run import Run, start
from selfvox.settings import Finetune
from selfvox.spatial import Plane, equal_spacing
from selfvox.training.augment import augment
from selfvox.training.curve import draw_curve
from selfvox.training.loop import Objective, Plan, train
from selfvox.weights import load_into, load_part, save_part

FOREGROUND_SHARE = 0.5
VALIDATION_SHARE = 0.2


class Segmentation(Objective):
    """A segmenter and the loss of its labels; the encoder stands still for the first `frozen_steps`."""

    def __init__(
        self, network: Segmenter, values: Sequence[int], loss: str, planes: Sequence[Plane], frozen_steps: int
    ):
        super().__init__()
        self.network, self.planes, self.frozen_steps = network, planes, frozen_steps
        self.values = torch.tensor(values)  # what labels hold, in the order of the network's outputs
        self.loss = losses.soft_dice if loss == "dice" else losses.dice_cross_entropy

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Augment, segment, compare."""
        image, label = augment(batch["image"], batch["label"], self.planes, rng)
        frozen = step < self.frozen_steps
        # a frozen encoder's normalisation stands still too
        self.network.encoder.train(not frozen)
        with torch.set_grad_enabled(not frozen):
            maps = self.network.encoder(image)
        output = torch.searchsorted(self.values.to(label.device), label.long())
        return Outcome(self.loss(self.network.decode(maps, image.shape[2:]), output), {})


def finetune(settings: Finetune) -> Path:
    """Fine-tune an encoder with a few labels to a segmentation network.

    Returns:
        The run's folder; `network/` within it is what `predict` loads.

    Raises:
        SelfvoxError: a setting, a scan, weights, a resource or a number that cannot be; says what to do.
    """
    pretrained = None if settings.encoder.lower() == "none" else _encoder_part(Path(settings.encoder))
    fabric = make_fabric(settings.device, 1, settings.precision)
    with start(settings.out, settings, resume=settings.resume) as run:
        recipe = Recipe.from_dict(pretrained[1]["recipe"]) if pretrained else None
        store = prepared(settings.labelled, settings.out / "store", settings, recipe=recipe, need_labels=True)
        classes = _classes(store)
        split = _split(run, store, settings)
        training, validation = _cases(store, split.train), _cases(store, split.validation)
        torch.manual_seed(settings.seed)
        network, card, frozen_steps = _network(settings, pretrained, store, training, len(classes))
        crop = crop_for(settings.crop, training, network.encoder.strides[-1])
        card |= {"crop": list(crop), "classes": {str(value): name for value, name in classes.items()}}
        how = Plan(
            steps=settings.steps,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            save_every=settings.validate_every or max(1, settings.steps // 5),
            seed=settings.seed,
        )
        planes = equal_spacing(most_uneven_spacing(training))
        objective = Segmentation(network, list(classes), settings.loss, planes, frozen_steps)
        keeper = _Keeper(run, fabric, network, card, store, validation, settings, how)
        edges = " x ".join(map(str, crop))
        say(f"{len(training)} labelled scans to train on, {len(validation)} to validate; crops of {edges} voxels")
        if not validation:
            say("no labelled scan is left to validate on: the last weights are kept")
        if pretrained:
            _tell_leak(pretrained[1], store, split)
        run.depends_on(network=card["network"], crop=list(crop), data=seen([*training, *validation]))
        data = Crops(store, training, crop, settings.seed, labels=True, foreground=FOREGROUND_SHARE)
        train(fabric, run, objective, data, how, title="finetune", after_step=keeper.after_step)
        draw_curve(run.path, run.path / "curve.png")
        say(f"network: {run.path / 'network'} ({keeper.kept})   curve: {run.path / 'curve.png'}")
        say(f"next: selfvox predict {run.path} NEW_SCANS/ --out predictions/")
    return settings.out


class _Keeper:
    """Validates on whole scans every so often, and keeps the weights that the run is to end with."""

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        network: Segmenter,
        card: dict[str, Any],
        store: Store,
        validation: list[StoredCase],
        settings: Finetune,
        how: Plan,
    ):
        self.run, self.fabric, self.network, self.card = run, fabric, network, card
        self.store, self.validation, self.how = store, validation, how
        self.best_only = settings.keep == "best" and bool(validation)
        self.step, self.dice = 0, -1.0
        if settings.resume and (run.path / "network" / "network.json").exists():
            before = json.loads((run.path / "network" / "network.json").read_text(encoding="utf-8"))
            self.step = before["step"]
            self.dice = -1.0 if before["validation_dice"] is None else before["validation_dice"]

    @property
    def kept(self) -> str:
        """Which weights the run ended with."""
        which = "best by validation" if self.best_only else "last"
        return f"{which}: step {self.step}" + (f", mean Dice {self.dice:.3f}" if self.dice >= 0 else "")

    def after_step(self, step: int) -> dict[str, float]:
        """Validate when it is time; what was measured."""
        if step % self.how.save_every and step != self.how.steps:
            return {}
        scores = self._validate() if self.validation else {}
        mean = scores.get("dice_mean", -1.0)
        # a step that is taken again after a kill is no better than itself, whose weights lie there
        if mean > self.dice or not self.best_only:
            self.step, self.dice = step, mean
            found = {"step": step, "validation_dice": mean if mean >= 0 else None}
            save_part(self.run.path / "network", "network", self.network, {**self.card, **found})
        return scores

    def _validate(self) -> dict[str, float]:
        self.network.eval()
        window = self.card["crop"]
        names = list(self.card["classes"].values())[1:]
        values = [int(value) for value in self.card["classes"]]
        scores = []
        for case in self.validation:
            image = self.fabric.to_device(torch.from_numpy(self.store.crop(case, (0,) * len(case.shape), case.shape)))
            with self.fabric.autocast():
                label = segment_whole(self.network, image, window, overlap=0.25).argmax(0)
            truth = np.searchsorted(values, self.store.label_crop(case, (0,) * len(case.shape), case.shape))
            scores.append(dice_per_class(label.cpu().numpy(), truth, len(names) + 1))
        self.network.train()
        mean = torch.tensor(scores, dtype=torch.float64).mean(0)
        return {"dice_mean": float(mean.mean()), **{f"dice_{n}": float(d) for n, d in zip(names, mean, strict=True)}}


def _encoder_part(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and card of a pre-training run, or of its `encoder/` folder."""
    folder = path / "encoder" if (path / "encoder").is_dir() else path
    return load_part(folder, "encoder", needs=("network", "spatial_dims", "in_channels", "recipe", "task", "seen"))


def _tell_leak(card: dict[str, Any], store: Store, split: Split) -> None:
    """Say which test scans the encoder has seen, by their contents or their subjects."""
    test = [case for case in store.cases if case.subject in set(split.test)]
    contents, subjects = set(card["seen"]["image_hashes"]), set(card["seen"]["subjects"])
    known = [case.id for case in test if case.image_hash in contents or case.subject in subjects]
    if known:
        say(
            f"{len(known)} of {len(test)} test scans ({known[0]} first) or subjects of their name were seen in "
            "pre-training: their scores are not those of unseen scans; pre-train from a store with this split"
        )


def _classes(store: Store) -> dict[int, str]:
    """The classes by label value, in the order of the network's outputs; the values may have gaps."""
    if not store.classes or len(store.classes) < 2:
        raise DataError(f"{store.path}: holds no labels; name a folder of scans with labels")
    return dict(sorted(store.classes.items()))


def _split(run: Run, store: Store, settings: Finetune) -> Split:
    """Who trains, validates and tests: the store's split or a new one, its training subjects cut to those asked for."""
    labelled = {case.subject for case in store.cases if case.has_label}
    whole = read_if_there(store.path / "split.json")
    if whole is None:
        # labels asked for train; of the others, a fifth of all validate
        spare = len(labelled) - (settings.labels or 1)
        whole = make(labelled, 0, max(0, min(spare, max(1, round(VALIDATION_SHARE * len(labelled))))), 0)
    with_labels = Split(
        train=tuple(subject for subject in whole.train if subject in labelled),
        validation=tuple(subject for subject in whole.validation if subject in labelled),
        test=whole.test,
        seed=whole.seed,
    )
    seed = settings.seed if settings.subset_seed is None else settings.subset_seed
    chosen = subset(with_labels, seed, settings.labels, settings.fraction)
    split = Split(train=chosen, validation=with_labels.validation, test=with_labels.test, seed=seed)
    write(split, run.path / "split.json")
    return split


def _cases(store: Store, subjects: Sequence[str]) -> list[StoredCase]:
    wanted = set(subjects)
    return [case for case in store.cases if case.subject in wanted and case.has_label]


def _network(
    settings: Finetune,
    pretrained: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
    store: Store,
    training: list[StoredCase],
    classes: int,
) -> tuple[Segmenter, dict[str, Any], int]:
    """The segmenter, what to say of it, and for how many steps its encoder stands still."""
    d, channels = store.recipe.spatial_dims, len(store.recipe.channel_names)
    if pretrained is None:
        spec = plan(settings.network, crop_for(settings.crop, training), median_spacing(training))
        encoder, report, frozen_steps = build(spec, d, channels), "from scratch", 0
    else:
        tensors, found = pretrained
        spec = found["network"]
        _check_network(settings, spec)
        encoder = build(spec, found["spatial_dims"], found["in_channels"])
        loaded = load_into(encoder, tensors, f"{settings.encoder}")
        report = f"loaded {loaded} into the encoder, pre-trained by {found['task']['name']}; none left over"
        frozen_share = {"never": 0.0, "always": 1.0, "warmup": settings.warmup}[settings.freeze]
        frozen_steps = round(frozen_share * settings.steps)
    network = Segmenter(encoder, classes, spec.get("norm", "instance"))
    decoder = sum(parameter.numel() for parameter in network.decoder.parameters()) / 1e6
    say(f"encoder: {report}; decoder: {decoder:.2f} M values at random")
    if frozen_steps:
        say(f"the encoder stands still for {frozen_steps} of {settings.steps} steps")
    card = {
        "network": spec,
        "spatial_dims": d,
        "in_channels": channels,
        "recipe": store.recipe.to_dict(),
        "encoder": report,
        "seed": settings.seed,
    }
    return network, card, frozen_steps


def _check_network(settings: Finetune, spec: dict[str, Any]) -> None:
    """Refuse a network that was asked for beside an encoder which is another."""
    asked = {"name": settings.network} if isinstance(settings.network, str) else {"name": "plain", **settings.network}
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
