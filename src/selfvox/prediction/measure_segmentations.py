"""Calibrate segmenters: measure labelled scans by passes, and fit Dice and volumes to them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.ops.metrics import dice_per_class
from selfvox.prediction.calibration_job import CalibrationJob
from selfvox.prediction.labelled_scans import LabelledScan
from selfvox.prediction.scan_segmenter import OVERLAP, ScanSegmenter
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo, progress_bar
from selfvox.uncertainty.calibration import Measure, held_out_dice, make_calibration
from selfvox.uncertainty.review import part_names, parts, written_voxel


def calibrate_segmenters(job: CalibrationJob, models: Sequence[TrainedSegmenter]) -> list[Path]:
    """Fit one calibration to what all networks measured, and write it for each of them.

    Args:
        job: networks, passes and scans.
        models: the networks.

    Returns:
        The file of each network.
    """
    of_classes: dict[str, list[Measure]] = {}
    of_regions: dict[str, list[Measure]] = {}
    class_names: dict[str, str] = {}
    with progress_bar("calibrate", job.count) as bar:
        for model, scans in zip(models, job.scans, strict=True):
            segmenter = ScanSegmenter([model], job.passes, OVERLAP, job.fabric)
            for scan in scans:
                review, measures = _measure(segmenter, scan)
                entries = zip(
                    parts(review), part_names(review, model.classes), measures, strict=True
                )
                for part, name, measure in entries:
                    if "region" in part:
                        of_regions.setdefault(part["region"], []).append(measure)
                    else:
                        of_classes.setdefault(str(part["class"]), []).append(measure)
                        class_names[str(part["class"])] = name
                bar.advance()
    calibration = make_calibration(
        job.passes,
        models[0].sha256,
        OVERLAP,
        job.origin,
        of_classes,
        of_regions,
        review["volumes_in"],
        len(models),
    )
    _write_measures(job, of_classes, of_regions, class_names)
    _describe(of_classes or of_regions, calibration.level, calibration.subjects)
    return job.write(calibration, models)


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
    job: CalibrationJob,
    of_classes: Mapping[str, Sequence[Measure]],
    of_regions: Mapping[str, Sequence[Measure]],
    class_names: Mapping[str, str],
) -> None:
    """Write the measures as a table, with the Dice that was predicted without the subject."""
    header = ["case", "subject", "network", "name", "agreement", "predicted_dice", "dice"]
    header += ["volume", "spread", "true_volume"]
    networks = job.network_of
    rows = [
        [
            measure.case,
            measure.subject,
            networks[measure.case],
            name,
            measure.agreement,
            dice,
            measure.dice,
            measure.volume,
            measure.spread,
            measure.true_volume,
        ]
        # classes and regions are calibrated apart
        for parts_measured, names in ((of_classes, class_names), (of_regions, {}))
        for key, predicted in held_out_dice(parts_measured).items()
        for name in [names.get(key, key)]
        for measure, dice in zip(parts_measured[key], predicted, strict=True)
    ]
    write_csv(job.table, header, rows)


def _describe(measured: Mapping[str, Sequence[Measure]], level: float, subjects: int) -> None:
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
        f"for each class, the intervals of the volume contain the truth of {100 * level:.0f} % of "
        f"such scans{few}; the ranges of Dice that of about as many"
    )
