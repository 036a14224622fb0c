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

from selfvox.data.cases import Rejected, rejected
from selfvox.data.recipe import Recipe
from selfvox.data.sources import Case, find
from selfvox.device import make_fabric
from selfvox.errors import DataError, ResourceError, UsageError, WeightsError
from selfvox.files import write_csv
from selfvox.inference import answers, asked, voters
from selfvox.inference.classes import CLASS, TABLE
from selfvox.inference.folder import Folder
from selfvox.inference.masks import TOGETHER, Masks
from selfvox.models.classifier import Classifier
from selfvox.models.encoder import build
from selfvox.progress import progress, say
from selfvox.settings import Predict
from selfvox.spatial import resize
from selfvox.weights import load_into, load_part


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
        card = json.loads((_part(run) / "network.json").read_text(encoding="utf-8"))
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
    dataset = find(settings.scans, settings.source)
    for note in dataset.notes:
        say(note)
    cases = asked.chosen(dataset, settings)
    asked.check_channels(dataset, cases, model.recipe)
    many = settings.passes > 1 or bool(settings.ensemble)
    with asked.stoppable(settings.out):
        asked.check_apart(settings, cases)
        folder = Folder(settings.out, probabilities=False, answers=True)
        how = {"ordinal": model.network.ordinal, "precision": str(fabric.strategy.precision.precision)}
        if many:
            how |= voters.how(settings, [each.sha256 for each in models])
        done = folder.open(cases, {"network_sha256": model.sha256, **how}, dict(enumerate(model.classes)))
        if done:
            say(f"{len(done)} of {len(cases)} predictions are there already and are kept")
        todo = [case for case in cases if case.id not in done]
        refused = _predict_all(todo, len(cases), models, fabric, folder, settings)
        _write(settings.out / TABLE, cases, model, folder, many)
    folder.reject(refused)
    if many and (found := folder.noted("answer")):
        answers.write_review(settings.out / "review.csv", found, model.classes)
        say(f"look at these first: {settings.out / 'review.csv'}")
    if refused:
        raise DataError(
            f"{settings.out}: {len(refused)} of {len(cases)} scans could not be predicted, see rejected.csv there; "
            "repair or remove them and run the same command again"
        )
    say(f"predictions: {settings.out / TABLE} ({len(cases)} scans)")
    say(f"next: selfvox evaluate {settings.out} TRUTH.csv --out scores.csv")
    return settings.out / TABLE


def load(run: Path) -> Model:
    """The classifier of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = _part(run)
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


def _part(run: Path) -> Path:
    return run / "network" if (run / "network").is_dir() else run


def _common(model: Model) -> dict[str, Any]:
    """What networks that vote together must have in common."""
    return {"list of classes": model.classes, "recipe": model.recipe, "setting --ordinal": model.network.ordinal}


def _predict_all(
    todo: Sequence[Case], total: int, models: Sequence[Model], fabric: Fabric, folder: Folder, settings: Predict
) -> list[Rejected]:
    ordinal, names = models[0].network.ordinal, models[0].classes
    for model in models:
        fabric.to_device(model.network)
    masks = [_masks(model, settings) for model in models]
    refused = []
    with progress("predict", total, total - len(todo)) as bar:
        for case in todo:
            try:
                _, prepared = asked.read(case, models[0].recipe)
            except DataError as error:
                refused.append(rejected(case, str(error)))
                say(f"{refused[-1].file}: {refused[-1].reason}")
            else:
                passes = _ask(models, masks, fabric, prepared.data, settings.passes)
                said = answers.measure(passes, ordinal, names, settings)
                if len(passes) == 1:
                    said = {name: said[name] for name in ("class", "probabilities")}
                folder.record(case, answer=said)
            bar.advance(f"{len(refused)} rejected" if refused else "")
    return refused


def _masks(model: Model, settings: Predict) -> Masks | None:
    if settings.passes == 1:
        return None
    return Masks(model.network.encoder, model.network.head, voters.dropout(settings))


def _ask(
    models: Sequence[Model], masks: Sequence[Masks | None], fabric: Fabric, data: np.ndarray, passes: int
) -> torch.Tensor:
    """Probabilities (pass, class) of a prepared scan (channel, *space), by all passes of all networks."""
    found = []
    try:
        with torch.inference_mode(), fabric.autocast():
            for number, (model, drop) in enumerate(zip(models, masks, strict=True)):
                image = fabric.to_device(resize(torch.from_numpy(data)[None], model.size))
                if drop is None:
                    found.append(model.network.probabilities(model.network(image)))
                else:
                    found.append(sweep(model.network, drop, image, range(number * passes, (number + 1) * passes)))
            return torch.cat(found).cpu()
    except torch.OutOfMemoryError:
        raise ResourceError("the device's memory is full; run the same command again with --device cpu") from None


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
        rows.append([case.id, case.images[0].name, one["class"], *values, *(one[name] for name in of_scan)])
    write_csv(path, ["id", "file", CLASS, *header, *of_scan], rows)
