"""Calibrate a run, or the runs of all folds together, on labelled scans that they have not seen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from selfvox.errors import UsageError
from selfvox.prediction import classify, regress, segment
from selfvox.prediction.calibration_job import CalibrationJob
from selfvox.prediction.labelled_scans import LabelledScan, leave_out_seen_voxels, unseen_scans
from selfvox.prediction.load_model import load_model
from selfvox.prediction.measure_classes import calibrate_classifiers
from selfvox.prediction.measure_segmentations import calibrate_segmenters
from selfvox.prediction.measure_targets import calibrate_regressors
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedModel,
    TrainedRegressor,
    TrainedSegmenter,
)
from selfvox.runs.device import make_fabric
from selfvox.runs.fold_folder import name_networks
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Calibrate, Predict
from selfvox.uncertainty.calibration import MIN_SUBJECTS
from selfvox.uncertainty.ensemble import PassSettings, describe_passes

MOST_SCANS = 50  # of several passes: more would cost as many and hardly change the calibration
SEGMENTER_PASSES = 20


def calibrate_run(settings: Calibrate) -> Path:
    """Predict labelled scans, and fit what the predictions say of the truth.

    In a folder of folds, each scan is predicted by a network that was not trained on it, and one
    calibration is fitted to all of them: cross-fitting.

    Returns:
        The file `calibration.json` next to the weights, which `predict` reads; of folds, the table
        of what was measured.

    Raises:
        UsageError: there are too few subjects, or the settings do not fit the network.
        DataError: a scan or its truth cannot be used.
        WeightsError: the run has no intact network.
    """
    runs = name_networks([settings.run])
    models = [load_model(run) for run in runs]
    is_segmented = isinstance(models[0], TrainedSegmenter)
    passes = _passes(settings, runs, models)
    scans = _chosen_scans(settings, runs, models, MOST_SCANS if passes.passes > 1 else None)
    count = sum(map(len, scans))
    subjects = len(_subjects(scans))
    by_networks = ""
    if len(runs) > 1:
        by_networks = f", each by one of {len(runs)} networks that was not trained on it"
    # like `predict` on these scans, of which most of the time is spent in the passes
    cost = f"{passes.passes} passes each: as long as `selfvox predict --passes {passes.passes}`"
    if passes.passes == 1:
        cost = "a plain prediction each: as long as `selfvox predict`"
    echo(f"{count} labelled scans of {subjects} subjects{by_networks}, {cost} on them")
    describe_passes(passes, [model.dropout for model in models])
    origin = "validation subjects of the run"
    if len(runs) > 1:
        origin = "validation subjects of the folds"
    job = CalibrationJob(
        place=settings.run,
        runs=runs,
        passes=passes,
        scans=scans,
        origin=origin if settings.labelled is None else settings.labelled.name,
        fabric=make_fabric(settings.device, 1, settings.precision),
    )
    if is_segmented:
        files = calibrate_segmenters(job, cast(list[TrainedSegmenter], models))
    elif isinstance(models[0], TrainedRegressor):
        files = calibrate_regressors(job, cast(list[TrainedRegressor], models))
    else:
        files = calibrate_classifiers(job, cast(list[TrainedClassifier], models))
    calibration = files[0] if len(files) == 1 else f"{files[0]} and those of the other folds"
    echo(f"calibration: {calibration}   its scans: {job.table}")
    options = f" --passes {passes.passes}" if passes.passes > 1 else ""
    echo(
        f"next: selfvox predict {shlex.quote(str(settings.run))} NEW_SCANS/{options} "
        "--out predictions/"
    )
    return files[0] if len(files) == 1 else job.table


def _passes(
    settings: Calibrate,
    runs: Sequence[Path],
    models: Sequence[TrainedModel],
) -> PassSettings:
    """The passes that `predict` would make with the same settings."""
    is_segmented = isinstance(models[0], TrainedSegmenter)
    count = settings.passes or (SEGMENTER_PASSES if is_segmented else 1)
    if count == 1 and is_segmented:
        raise UsageError(
            f"passes: a single prediction by {runs[0]} says nothing of its Dice; give --passes "
            f"{SEGMENTER_PASSES}"
        )
    prediction = Predict(
        run=runs[0],
        scans=runs[0],
        out=runs[0],
        passes=count,
        encoder_dropout=settings.encoder_dropout,
        decoder_dropout=settings.decoder_dropout,
        dropout_kind=settings.dropout_kind,
        seed=settings.seed,
    )
    passes = PassSettings.from_verb(prediction, models[0].dropout)
    if is_segmented:
        segment.check_vote(cast(list[TrainedSegmenter], models), passes, runs)
    elif isinstance(models[0], TrainedRegressor):
        regress.check_vote(cast(list[TrainedRegressor], models), passes, runs)
    else:
        classify.check_vote(cast(list[TrainedClassifier], models), passes, runs)
    return passes


def _chosen_scans(
    settings: Calibrate,
    runs: Sequence[Path],
    models: Sequence[TrainedModel],
    most: int | None,
) -> list[list[LabelledScan]]:
    """For each network its labelled scans, at most so many in all, spread over all there are."""
    scans = unseen_scans(runs, settings.labelled, settings.source, models)
    _check_subjects(settings, scans)
    together = [scan for of_network in scans for scan in of_network]
    if most is not None and len(together) > most:
        echo(f"{most} of {len(together)} scans are taken, which is enough")
        names = {scan.case for scan in _spread_scans(together, most)}
        scans = [[scan for scan in of_network if scan.case in names] for of_network in scans]
    if settings.labelled is None:
        return scans
    scans = leave_out_seen_voxels(scans)
    _check_subjects(settings, scans)
    return scans


def _subjects(scans: Sequence[Sequence[LabelledScan]]) -> set[str]:
    return {scan.subject for of_network in scans for scan in of_network}


def _check_subjects(settings: Calibrate, scans: Sequence[Sequence[LabelledScan]]) -> None:
    """Refuse scans of too few subjects."""
    subjects = len(_subjects(scans))
    if subjects < MIN_SUBJECTS:
        place = settings.labelled or settings.run
        raise UsageError(
            f"{place}: has labelled scans of {subjects} subjects that {settings.run} was not "
            f"trained on, and a calibration needs {MIN_SUBJECTS}; name more: "
            f"`selfvox calibrate {settings.run} LABELLED/`"
        )


def _spread_scans(scans: Sequence[LabelledScan], count: int) -> list[LabelledScan]:
    """So many of more scans: one of each subject first, since subjects are what is calibrated."""
    # of each subject, its first scan
    first = list({scan.subject: scan for scan in reversed(scans)}.values())[::-1]
    if len(first) >= count:
        return _evenly(first, count)
    names = {scan.case for scan in first}
    further = [scan for scan in scans if scan.case not in names]
    return first + _evenly(further, count - len(first))


def _evenly(scans: Sequence[LabelledScan], count: int) -> list[LabelledScan]:
    # evenly, since the first scans may be of one site
    places = np.linspace(0, len(scans) - 1, count).round().astype(int)
    return [scans[place] for place in places]
