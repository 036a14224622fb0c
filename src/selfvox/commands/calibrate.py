"""The verb `calibrate`: what the passes of a run say of true Dice and true volumes."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.errors import UsageError
from selfvox.ops.metrics import dice_per_class
from selfvox.prediction import segment
from selfvox.prediction.labelled_scans import LabelledScan, leave_out_seen_voxels, unseen_scans
from selfvox.prediction.segment import ScanSegmenter
from selfvox.prediction.trained_model import TrainedSegmenter, load_model
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.device import make_fabric
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Calibrate, Predict
from selfvox.uncertainty.calibration import (
    MIN_SUBJECTS,
    Measure,
    calibration_file,
    held_out_dice,
    make_calibration,
    write_calibration,
)
from selfvox.uncertainty.ensemble import PassSettings, describe_passes
from selfvox.uncertainty.review import part_names, parts, written_voxel

MOST_SCANS = 50  # more would cost as many passes and hardly change the calibration


def calibrate(settings: Calibrate) -> Path:
    """Predict labelled scans by passes, and fit what the passes say of Dice and volumes.

    Returns:
        The file `calibration.json` next to the weights, which `predict` reads.

    Raises:
        UsageError: the run classifies whole scans, or there are too few subjects.
        DataError: a scan or label cannot be used.
        WeightsError: the run has no intact network.
    """
    run = settings.run
    model = load_model(run)
    if not isinstance(model, TrainedSegmenter):
        raise UsageError(f"{run}: classifies whole scans; name a run that segments")
    passes = _passes(settings, model)
    scans = _chosen_scans(settings, model)
    subjects = len({scan.subject for scan in scans})
    # like `predict --passes` on these scans, of which most of the time is spent in the passes
    echo(
        f"{len(scans)} labelled scans of {subjects} subjects, {passes.passes} passes each: as long "
        f"as `selfvox predict --passes {passes.passes}` on them"
    )
    describe_passes(passes, [model.dropout])
    fabric = make_fabric(settings.device, 1, settings.precision)
    segmenter = ScanSegmenter([model], passes, segment.OVERLAP, fabric)
    of_classes: dict[str, list[Measure]] = {}
    of_regions: dict[str, list[Measure]] = {}
    names: dict[str, str] = {}
    with progress_bar("calibrate", len(scans)) as bar:
        for scan in scans:
            review, measures = _measure(segmenter, scan)
            entries = zip(parts(review), part_names(review, model.classes), measures, strict=True)
            for part, name, measure in entries:
                group = of_regions if "region" in part else of_classes
                key = part["region"] if "region" in part else str(part["class"])
                group.setdefault(key, []).append(measure)
                names[key] = name
            bar.advance()
    calibration = make_calibration(
        passes,
        model.sha256,
        segment.OVERLAP,
        "validation subjects of the run" if settings.labelled is None else settings.labelled.name,
        of_classes,
        of_regions,
        review["volumes_in"],
    )
    table = calibration_file(run).with_suffix(".csv")
    _write_measures(table, {**of_classes, **of_regions}, names)
    file = write_calibration(run, calibration)
    _describe(of_classes or of_regions, calibration.percent, subjects)
    echo(f"calibration: {file}   its scans: {table}")
    echo(
        f"next: selfvox predict {shlex.quote(str(run))} NEW_SCANS/ --passes {passes.passes} "
        "--out predictions/"
    )
    return file


def _passes(settings: Calibrate, model: TrainedSegmenter) -> PassSettings:
    """The passes that `predict` would make with the same settings."""
    prediction = Predict(
        run=settings.run,
        scans=settings.run,
        out=settings.run,
        passes=settings.passes,
        encoder_dropout=settings.encoder_dropout,
        decoder_dropout=settings.decoder_dropout,
        dropout_kind=settings.dropout_kind,
        seed=settings.seed,
    )
    passes = PassSettings.from_verb(prediction, model.dropout)
    segment.check_vote([model], passes, [settings.run])
    return passes


def _chosen_scans(settings: Calibrate, model: TrainedSegmenter) -> list[LabelledScan]:
    """At most `MOST_SCANS` labelled scans, spread over all that there are."""
    scans = unseen_scans(settings.run, settings.labelled, settings.source, model)
    _check_subjects(settings, scans)
    if len(scans) > MOST_SCANS:
        echo(f"{MOST_SCANS} of {len(scans)} scans are taken, which is enough")
        scans = _spread_scans(scans, MOST_SCANS)
    if settings.labelled is None:
        return scans
    scans = leave_out_seen_voxels(scans)
    _check_subjects(settings, scans)
    return scans


def _check_subjects(settings: Calibrate, scans: Sequence[LabelledScan]) -> None:
    """Refuse scans of too few subjects."""
    subjects = len({scan.subject for scan in scans})
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


def _measure(
    segmenter: ScanSegmenter, scan: LabelledScan
) -> tuple[Mapping[str, Any], list[Measure]]:
    """The review of a scan, and the measures of its classes and regions, in its order."""
    model = segmenter.models[0]
    prepared, truth = scan.read()
    result = segmenter.segment(prepared, probabilities=False)
    review = result.review
    assert review is not None
    voxel = written_voxel(prepared.spacing_mm, prepared.geometry.step)
    measures = []
    for part in parts(review):
        is_region = "region" in part
        numbers = (model.regions or {})[part["region"]] if is_region else (part["class"],)
        predicted = np.isin(result.label, numbers)
        true = np.isin(truth, numbers)
        measures.append(
            Measure(
                case=scan.case,
                subject=scan.subject,
                agreement=part["agreement"],
                volume=part["volume"],
                spread=part["spread"],
                dice=dice_per_class(predicted.astype(np.uint8), true.astype(np.uint8), 2)[0],
                true_volume=float(np.count_nonzero(true)) * voxel,
            )
        )
    return review, measures


def _write_measures(
    table: Path, measured: Mapping[str, Sequence[Measure]], names: Mapping[str, str]
) -> None:
    """Write the measures as a table, with the Dice that was predicted without the subject."""
    header = ["case", "subject", "name", "agreement", "predicted_dice", "dice"]
    header += ["volume", "spread", "true_volume"]
    predicted = held_out_dice(measured)
    rows = [
        [
            measure.case,
            measure.subject,
            names[key],
            measure.agreement,
            dice,
            measure.dice,
            measure.volume,
            measure.spread,
            measure.true_volume,
        ]
        for key, measures in measured.items()
        for measure, dice in zip(measures, predicted[key], strict=True)
    ]
    write_csv(table, header, rows)


def _describe(measured: Mapping[str, Sequence[Measure]], percent: str, subjects: int) -> None:
    """Print what the calibration changes, and what it can promise."""
    measures = [measure for part in measured.values() for measure in part]
    agreement = statistics.fmean(measure.agreement for measure in measures)
    dice = statistics.fmean(measure.dice for measure in measures)
    predicted = [dice for part in held_out_dice(measured).values() for dice in part]
    text = f"agreement of the passes {agreement:.3f}, true Dice {dice:.3f}"
    true = [measure.dice for measure in measures]
    if statistics.pstdev(predicted) > 0 and statistics.pstdev(true) > 0:
        correlation = statistics.correlation(predicted, true)
        text += f"; Dice predicted for held-out subjects correlates with it by {correlation:.2f}"
    echo(text)
    # conformal intervals of volumes promise n / (n + 1), which is 90 % from nine subjects on
    few = ", the most that so few subjects can promise" if subjects < 9 else ""
    echo(
        f"for each class, the intervals of the volume contain the truth of {percent} of such "
        f"scans{few}; the ranges of Dice that of about as many"
    )
