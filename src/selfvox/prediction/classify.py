"""Classify whole scans with a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from selfvox.data.formats.image import Image
from selfvox.data.preparation.prepare_case import main_file
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.sources import Case
from selfvox.errors import UsageError
from selfvox.ops.resize import resize
from selfvox.prediction import scan_loop
from selfvox.prediction.class_table import CLASS_COLUMN, TABLE_NAME
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.trained_classifier import TrainedClassifier, load_classifier
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.device import inference_mode, make_fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import class_votes, ensemble
from selfvox.uncertainty.class_passes import run_class_passes
from selfvox.uncertainty.mc_dropout import DropoutMasks


def predict_classes(settings: Predict) -> Path:
    """Classify the scans; returns the table. Answers that are there already, of the same run and scans, are kept."""
    if settings.maps:
        raise UsageError(
            f"maps: {settings.run} classifies whole scans, of which there are no maps; leave --maps out"
        )
    models = [load_classifier(run) for run in (settings.run, *settings.ensemble)]
    model = models[0]
    ensemble.check_compatible(settings, [_common(each) for each in models])
    ensemble.check_vote(settings, model.classes)
    fabric = make_fabric(settings.device, 1, settings.precision)
    cases, many = scan_loop.chosen_cases(settings, model.recipe), ensemble.has_many_votes(settings)
    folder = OutputFolder(settings.out, probabilities=False, answers=True)
    with folder.held(), scan_loop.stop_on_signal(settings.out):
        how = {
            "ordinal": model.network.ordinal,
            "precision": str(fabric.strategy.precision.precision),
        }
        how |= ensemble.vote_settings(settings, [each.sha256 for each in models])
        todo = folder.open(
            cases, {"network_sha256": model.sha256, **how}, dict(enumerate(model.classes))
        )
        refused = scan_loop.process_scans(
            todo, len(cases), model.recipe, _work(models, fabric, folder, settings)
        )
        _write(settings.out / TABLE_NAME, cases, model, folder, many)
        if many and (found := folder.noted("answer")):
            class_votes.write_review(settings.out / "review.csv", found, model.classes)
            echo(f"look at these first: {settings.out / 'review.csv'}")
        folder.reject(refused, len(cases))
    echo(f"predictions: {settings.out / TABLE_NAME} ({len(cases)} scans)")
    echo(f"next: selfvox evaluate {settings.out} TRUTH.csv --out scores.csv")
    return settings.out / TABLE_NAME


def _common(model: TrainedClassifier) -> dict[str, Any]:
    """What networks that vote together must have in common."""
    return {
        "list of classes": model.classes,
        "recipe": model.recipe,
        "setting --ordinal": model.network.ordinal,
    }


def _work(
    models: Sequence[TrainedClassifier], fabric: Fabric, folder: OutputFolder, settings: Predict
) -> scan_loop.ScanFunction:
    """Classify each scan, by all passes of all networks."""
    ordinal, names = models[0].network.ordinal, models[0].classes
    for model in models:
        fabric.to_device(model.network)
    masks = [_masks(model, settings) for model in models]

    def work(case: Case, image: Image, prepared: PreparedScan) -> None:
        passes = _ask(models, masks, fabric, prepared.data, settings.passes)
        said = class_votes.measure_class_votes(passes, ordinal, names, settings)
        if len(passes) == 1:
            said = {name: said[name] for name in ("class", "probabilities")}
        folder.record(case, answer=said, notes=image.notes)

    return work


def _masks(model: TrainedClassifier, settings: Predict) -> DropoutMasks | None:
    if settings.passes == 1:
        return None
    return DropoutMasks(
        model.network.encoder, model.network.head, ensemble.dropout_from_settings(settings)
    )


def _ask(
    models: Sequence[TrainedClassifier],
    masks: Sequence[DropoutMasks | None],
    fabric: Fabric,
    data: np.ndarray,
    passes: int,
) -> torch.Tensor:
    """Probabilities (pass, class) of a prepared scan (channel, *space), by all passes of all networks."""
    found = []
    with inference_mode(fabric):
        for number, (model, drop) in enumerate(zip(models, masks, strict=True)):
            image = fabric.to_device(resize(torch.from_numpy(data)[None], model.size))
            if drop is None:
                found.append(model.network.probabilities(model.network(image)))
            else:
                found.append(
                    run_class_passes(
                        model.network, drop, image, range(number * passes, (number + 1) * passes)
                    )
                )
        return torch.cat(found).cpu()


def _write(
    path: Path, cases: Sequence[Case], model: TrainedClassifier, folder: OutputFolder, many: bool
) -> None:
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
            [case.id, main_file(case), one["class"], *values, *(one[name] for name in of_scan)]
        )
    write_csv(path, ["id", "file", CLASS_COLUMN, *header, *of_scan], rows)
