"""The verb `predict`: segmentations on each scan's own grid, or a table of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfvox.prediction import classify, scan_loop, trained_classifier
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.segment import _check_alike, _many_passes, _one_pass
from selfvox.prediction.trained_segmenter import load_segmenter
from selfvox.runs.device import make_fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import ensemble, maps, review


def predict(settings: Predict) -> list[Path]:
    """Predict segmentations, each on the grid of the scan it was made from; or a table of classes.

    Predictions that lie in `out` already, made by the same run in the same way, are kept.

    Returns:
        The predicted labels' files, in the order of the cases; of a run that classifies, the table.

    Raises:
        UsageError: `out` holds predictions of another run, or of other scans of the same names; or the runs of an
            ensemble cannot vote together.
        BusyError: another process is predicting into `out`.
        DataError: no scan is there, or at least one could not be predicted; the others were.
        WeightsError: the run holds no intact network.
        ResourceError: disk or memory is full.
        Stopped: a signal came; what was finished stays.
    """
    ensemble.check_same_kind(
        settings,
        [trained_classifier.is_classifier(run) for run in (settings.run, *settings.ensemble)],
    )
    if trained_classifier.is_classifier(settings.run):
        return [classify.predict_classes(settings)]
    models = [load_segmenter(run) for run in (settings.run, *settings.ensemble)]
    model = models[0]
    _check_alike(models, settings)
    fabric = make_fabric(settings.device, 1, settings.precision)
    cases, many = scan_loop.chosen_cases(settings, model.recipe), ensemble.has_many_votes(settings)
    folder = OutputFolder(settings.out, settings.probabilities, maps.map_names(settings.maps))
    with folder.held(), scan_loop.stop_on_signal(settings.out):
        how: dict[str, Any] = {
            "overlap": settings.overlap,
            "precision": str(fabric.strategy.precision.precision),
        }
        how |= ensemble.vote_settings(settings, [model.sha256 for model in models])
        how |= {"maps": list(settings.maps)} if many else {}
        how |= {"trained_on": "regions"} if model.own else {}
        todo = folder.open(
            cases, {"network_sha256": model.sha256, **how}, model.classes, model.regions
        )
        work = (
            _many_passes(models, fabric, folder, settings)
            if many
            else _one_pass(model, fabric, folder, settings)
        )
        refused = scan_loop.process_scans(todo, len(cases), model.recipe, work)
        if many and (measured := folder.noted("review")):
            review.write_review(settings.out / "review.csv", measured, model.classes)
            echo(f"look at these first: {settings.out / 'review.csv'}")
        folder.reject(refused, len(cases))
    echo(f"predictions: {settings.out} ({len(cases)} scans)")
    echo(f"next: selfvox evaluate {settings.out} TRUTH/ --out scores.csv")
    return [folder.files(case)[0] for case in cases]
