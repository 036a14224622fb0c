"""Classify whole scans with a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox.data.formats.image import Image
from selfvox.data.preparation.prepare_case import file_of
from selfvox.data.preparation.recipe import Prepared
from selfvox.data.sources import Case
from selfvox.errors import UsageError
from selfvox.ops.resize import resize
from selfvox.prediction import scan_loop
from selfvox.prediction.class_table import CLASS, TABLE
from selfvox.prediction.output_folder import Folder
from selfvox.prediction.trained_classifier import Model, load
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.device import asking, make_fabric
from selfvox.runs.progress import say
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import class_votes, ensemble
from selfvox.uncertainty.class_passes import sweep
from selfvox.uncertainty.mc_dropout import Masks


def predict(settings: Predict) -> Path:
    """Classify the scans; returns the table. Answers that are there already, of the same run and scans, are kept."""
    if settings.maps:
        raise UsageError(
            f"maps: {settings.run} classifies whole scans, of which there are no maps; leave --maps out"
        )
    models = [load(run) for run in (settings.run, *settings.ensemble)]
    model = models[0]
    ensemble.check_alike(settings, [_common(each) for each in models])
    ensemble.check_vote(settings, model.classes)
    fabric = make_fabric(settings.device, 1, settings.precision)
    cases, many = scan_loop.scans(settings, model.recipe), ensemble.many(settings)
    folder = Folder(settings.out, probabilities=False, answers=True)
    with folder.held(), scan_loop.stoppable(settings.out):
        how = {
            "ordinal": model.network.ordinal,
            "precision": str(fabric.strategy.precision.precision),
        }
        how |= ensemble.how(settings, [each.sha256 for each in models])
        todo = folder.open(
            cases, {"network_sha256": model.sha256, **how}, dict(enumerate(model.classes))
        )
        refused = scan_loop.each(
            todo, len(cases), model.recipe, _work(models, fabric, folder, settings)
        )
        _write(settings.out / TABLE, cases, model, folder, many)
        if many and (found := folder.noted("answer")):
            class_votes.write_review(settings.out / "review.csv", found, model.classes)
            say(f"look at these first: {settings.out / 'review.csv'}")
        folder.reject(refused, len(cases))
    say(f"predictions: {settings.out / TABLE} ({len(cases)} scans)")
    say(f"next: selfvox evaluate {settings.out} TRUTH.csv --out scores.csv")
    return settings.out / TABLE


def _common(model: Model) -> dict[str, Any]:
    """What networks that vote together must have in common."""
    return {
        "list of classes": model.classes,
        "recipe": model.recipe,
        "setting --ordinal": model.network.ordinal,
    }


def _work(
    models: Sequence[Model], fabric: Fabric, folder: Folder, settings: Predict
) -> scan_loop.Work:
    """Classify each scan, by all passes of all networks."""
    ordinal, names = models[0].network.ordinal, models[0].classes
    for model in models:
        fabric.to_device(model.network)
    masks = [_masks(model, settings) for model in models]

    def work(case: Case, image: Image, prepared: Prepared) -> None:
        passes = _ask(models, masks, fabric, prepared.data, settings.passes)
        said = class_votes.measure(passes, ordinal, names, settings)
        if len(passes) == 1:
            said = {name: said[name] for name in ("class", "probabilities")}
        folder.record(case, answer=said, notes=image.notes)

    return work


def _masks(model: Model, settings: Predict) -> Masks | None:
    if settings.passes == 1:
        return None
    return Masks(model.network.encoder, model.network.head, ensemble.dropout(settings))


def _ask(
    models: Sequence[Model],
    masks: Sequence[Masks | None],
    fabric: Fabric,
    data: np.ndarray,
    passes: int,
) -> torch.Tensor:
    """Probabilities (pass, class) of a prepared scan (channel, *space), by all passes of all networks."""
    found = []
    with asking(fabric):
        for number, (model, drop) in enumerate(zip(models, masks, strict=True)):
            image = fabric.to_device(resize(torch.from_numpy(data)[None], model.size))
            if drop is None:
                found.append(model.network.probabilities(model.network(image)))
            else:
                found.append(
                    sweep(model.network, drop, image, range(number * passes, (number + 1) * passes))
                )
        return torch.cat(found).cpu()


def _write(path: Path, cases: Sequence[Case], model: Model, folder: Folder, many: bool) -> None:
    """The table of all answers that are there, in the order of the cases."""
    found = folder.noted("answer")
    of_class = {"probability": "probabilities"} | (
        {name: name for name in ("low", "high", "votes")} if many else {}
    )
    of_scan = ("entropy", "trust") if many else ()
    header = [f"{head}_{name}" for head in of_class for name in model.classes]
    rows = []
    for case in (case for case in cases if case.id in found):
        one = found[case.id]
        values = [value for name in of_class.values() for value in one[name]]
        rows.append(
            [case.id, file_of(case), one["class"], *values, *(one[name] for name in of_scan)]
        )
    write_csv(path, ["id", "file", CLASS, *header, *of_scan], rows)
