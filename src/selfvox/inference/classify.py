"""Predictions of a run that classifies: one table, with the class of each scan and every class's probability."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox.data.cases import Rejected, rejected
from selfvox.data.recipe import Recipe
from selfvox.data.sources import Case, find
from selfvox.device import make_fabric
from selfvox.errors import DataError, ResourceError, UsageError, WeightsError
from selfvox.files import write_csv
from selfvox.inference import asked
from selfvox.inference.classes import CLASS, TABLE, column
from selfvox.inference.folder import Folder
from selfvox.models.classifier import Classifier, decide
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
    if settings.passes > 1 or settings.ensemble:
        raise UsageError(
            f"{settings.run}: classifies whole scans, in one pass of one run; leave --passes and --ensemble out"
        )
    model = load(settings.run)
    fabric = make_fabric(settings.device, 1, settings.precision)
    dataset = find(settings.scans, settings.source)
    for note in dataset.notes:
        say(note)
    cases = asked.chosen(dataset, settings)
    asked.check_channels(dataset, cases, model.recipe)
    with asked.stoppable(settings.out):
        asked.check_apart(settings, cases)
        folder = Folder(settings.out, probabilities=False, answers=True)
        how = {"ordinal": model.network.ordinal, "precision": str(fabric.strategy.precision.precision)}
        done = folder.open(cases, {"network_sha256": model.sha256, **how}, dict(enumerate(model.classes)))
        if done:
            say(f"{len(done)} of {len(cases)} predictions are there already and are kept")
        refused = _predict_all([case for case in cases if case.id not in done], len(cases), model, fabric, folder)
        _write(settings.out / TABLE, cases, model, folder)
    folder.reject(refused)
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
        network = Classifier(encoder, len(classes), bool(card["ordinal"]))
        recipe, size = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / 'network.json'}: damaged ({error!r}); copy it again") from None
    say(f"network: {load_into(network, tensors, str(folder))}, of step {card.get('step')}")
    return Model(network.eval(), recipe, size, classes, card["sha256"])


def _part(run: Path) -> Path:
    return run / "network" if (run / "network").is_dir() else run


def _predict_all(todo: Sequence[Case], total: int, model: Model, fabric: Fabric, folder: Folder) -> list[Rejected]:
    fabric.to_device(model.network)
    refused = []
    with progress("predict", total, total - len(todo)) as bar:
        for case in todo:
            try:
                _, prepared = asked.read(case, model.recipe)
            except DataError as error:
                refused.append(rejected(case, str(error)))
                say(f"{refused[-1].file}: {refused[-1].reason}")
            else:
                probabilities = _ask(model, fabric, prepared.data)
                number = int(decide(probabilities[None], model.network.ordinal))
                shares = [round(value, 6) for value in probabilities.tolist()]
                folder.record(case, answer={"class": model.classes[number], "probabilities": shares})
            bar.advance(f"{len(refused)} rejected" if refused else "")
    return refused


def _ask(model: Model, fabric: Fabric, data: np.ndarray) -> torch.Tensor:
    """Probabilities (class,) of a prepared scan (channel, *space)."""
    try:
        with torch.inference_mode(), fabric.autocast():
            image = fabric.to_device(resize(torch.from_numpy(data)[None], model.size))
            return model.network.probabilities(model.network(image))[0].cpu()
    except torch.OutOfMemoryError:
        raise ResourceError("the device's memory is full; run the same command again with --device cpu") from None


def _write(path: Path, cases: Sequence[Case], model: Model, folder: Folder) -> None:
    """The table of all answers that are there, in the order of the cases."""
    answers = folder.noted("answer")
    rows = [
        [case.id, case.images[0].name, answers[case.id]["class"], *answers[case.id]["probabilities"]]
        for case in cases
        if case.id in answers
    ]
    write_csv(path, ["id", "file", CLASS, *map(column, model.classes)], rows)
