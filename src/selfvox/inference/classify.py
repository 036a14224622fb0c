"""Predictions of a run that classifies: one table, with the class of each scan and every class's probability."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox.data.cases import file_of
from selfvox.data.image import Image
from selfvox.data.recipe import Prepared, Recipe
from selfvox.data.sources import Case
from selfvox.device import asking, make_fabric
from selfvox.errors import UsageError, WeightsError
from selfvox.files import write_csv
from selfvox.inference import answers, asked, voters
from selfvox.inference.classes import CLASS, TABLE
from selfvox.inference.folder import Folder
from selfvox.inference.masks import TOGETHER, Masks
from selfvox.models.classifier import Classifier
from selfvox.models.encoder import build
from selfvox.progress import say
from selfvox.settings import Predict
from selfvox.spatial import resize
from selfvox.weights import load_into, load_part, part_of


@dataclass(frozen=True)
class Model:
    """A trained classifier and all that it takes to ask it."""

    network: Classifier
    recipe: Recipe
    size: tuple[int, ...]  # edges in voxels that every scan is resized to
    classes: tuple[str, ...]
    sha256: str  # of its weights


def classifies(run: Path) -> bool:
    """Whether the run's network classifies whole scans; False also where there is no readable network."""
    try:
        card = json.loads((part_of(run, "network") / "network.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and "ordinal" in card


def predict(settings: Predict) -> Path:
    """Classify the scans; returns the table. Answers that are there already, of the same run and scans, are kept."""
    if settings.maps:
        raise UsageError(f"maps: {settings.run} classifies whole scans, of which there are no maps; leave --maps out")
    models = [load(run) for run in (settings.run, *settings.ensemble)]
    model = models[0]
    voters.check_alike(settings, [_common(each) for each in models])
    voters.check_vote(settings, model.classes)
    fabric = make_fabric(settings.device, 1, settings.precision)
    cases, many = asked.scans(settings, model.recipe), voters.many(settings)
    folder = Folder(settings.out, probabilities=False, answers=True)
    with folder.held(), asked.stoppable(settings.out):
        how = {"ordinal": model.network.ordinal, "precision": str(fabric.strategy.precision.precision)}
        how |= voters.how(settings, [each.sha256 for each in models])
        todo = folder.open(cases, {"network_sha256": model.sha256, **how}, dict(enumerate(model.classes)))
        refused = asked.each(todo, len(cases), model.recipe, _work(models, fabric, folder, settings))
        _write(settings.out / TABLE, cases, model, folder, many)
        if many and (found := folder.noted("answer")):
            answers.write_review(settings.out / "review.csv", found, model.classes)
            say(f"look at these first: {settings.out / 'review.csv'}")
        folder.reject(refused, len(cases))
    say(f"predictions: {settings.out / TABLE} ({len(cases)} scans)")
    say(f"next: selfvox evaluate {settings.out} TRUTH.csv --out scores.csv")
    return settings.out / TABLE


def load(run: Path) -> Model:
    """The classifier of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = part_of(run, "network")
    tensors, card = load_part(folder, "network")
    try:
        classes = tuple(str(name) for name in card["classes"])
        encoder = build(card["network"], card["spatial_dims"], card["in_channels"])
        network = Classifier(encoder, len(classes), bool(card["ordinal"]), card.get("head") == "linear")
        recipe, size = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / 'network.json'}: damaged ({error!r}); copy it again") from None
    say(f"network: {load_into(network, tensors, str(folder))}, of step {card.get('step')}")
    return Model(network.eval(), recipe, size, classes, card["sha256"])


def _common(model: Model) -> dict[str, Any]:
    """What networks that vote together must have in common."""
    return {"list of classes": model.classes, "recipe": model.recipe, "setting --ordinal": model.network.ordinal}


def _work(models: Sequence[Model], fabric: Fabric, folder: Folder, settings: Predict) -> asked.Work:
    """Classify each scan, by all passes of all networks."""
    ordinal, names = models[0].network.ordinal, models[0].classes
    for model in models:
        fabric.to_device(model.network)
    masks = [_masks(model, settings) for model in models]

    def work(case: Case, image: Image, prepared: Prepared) -> None:
        passes = _ask(models, masks, fabric, prepared.data, settings.passes)
        said = answers.measure(passes, ordinal, names, settings)
        if len(passes) == 1:
            said = {name: said[name] for name in ("class", "probabilities")}
        folder.record(case, answer=said, notes=image.notes)

    return work


def _masks(model: Model, settings: Predict) -> Masks | None:
    if settings.passes == 1:
        return None
    return Masks(model.network.encoder, model.network.head, voters.dropout(settings))


def _ask(
    models: Sequence[Model], masks: Sequence[Masks | None], fabric: Fabric, data: np.ndarray, passes: int
) -> torch.Tensor:
    """Probabilities (pass, class) of a prepared scan (channel, *space), by all passes of all networks."""
    found = []
    with asking(fabric):
        for number, (model, drop) in enumerate(zip(models, masks, strict=True)):
            image = fabric.to_device(resize(torch.from_numpy(data)[None], model.size))
            if drop is None:
                found.append(model.network.probabilities(model.network(image)))
            else:
                found.append(sweep(model.network, drop, image, range(number * passes, (number + 1) * passes)))
        return torch.cat(found).cpu()


def sweep(network: Classifier, masks: Masks, image: torch.Tensor, passes: Sequence[int]) -> torch.Tensor:
    """Probabilities (pass, class) of one image (1, channel, *space) by these sub-networks.

    What the passes share is computed once: all of the encoder, where nothing is dropped in it.
    """
    dropping, few = masks.dropout.encoder > 0, TOGETHER[image.device.type]
    shared = image if dropping else network.encoder.embed(image)
    found = []
    with masks:
        for first in range(0, len(passes), few):
            now = list(passes[first : first + few])
            # always as many at a time: the arithmetic of a lone pass differs in the last digit
            full = now + now[-1:] * (few - len(now))
            masks.begin(full)
            batch = shared.expand(few, *shared.shape[1:])
            logits = network.answer(network.encoder.embed(batch) if dropping else batch)
            found.append(network.probabilities(logits)[: len(now)])
    return torch.cat(found)


def _write(path: Path, cases: Sequence[Case], model: Model, folder: Folder, many: bool) -> None:
    """The table of all answers that are there, in the order of the cases."""
    found = folder.noted("answer")
    of_class = {"probability": "probabilities"} | ({name: name for name in ("low", "high", "votes")} if many else {})
    of_scan = ("entropy", "trust") if many else ()
    header = [f"{head}_{name}" for head in of_class for name in model.classes]
    rows = []
    for case in (case for case in cases if case.id in found):
        one = found[case.id]
        values = [value for name in of_class.values() for value in one[name]]
        rows.append([case.id, file_of(case), one["class"], *values, *(one[name] for name in of_scan)])
    write_csv(path, ["id", "file", CLASS, *header, *of_scan], rows)
