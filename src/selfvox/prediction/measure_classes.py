"""Calibrate classifiers: classify scans with a class, and fit temperature and sets to them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.prediction.calibration_job import CalibrationJob
from selfvox.prediction.classify import ScanClassifier
from selfvox.prediction.labelled_scans import LabelledScan
from selfvox.prediction.trained_model import TrainedClassifier
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo, progress_bar
from selfvox.uncertainty.class_calibration import (
    CalibratedClasses,
    ClassCalibration,
    ClassMeasure,
    EnsembleClassCalibration,
    make_class_calibration,
)


def calibrate_classifiers(job: CalibrationJob, models: Sequence[TrainedClassifier]) -> list[Path]:
    """Fit one calibration to what all networks measured, and write it for each of them.

    Args:
        job: networks, passes and scans.
        models: the networks.

    Returns:
        The file of each network.
    """
    measures = []
    predicted = []
    with progress_bar("calibrate", job.count) as bar:
        for model, scans in zip(models, job.scans, strict=True):
            classifier = ScanClassifier([model], job.passes, job.fabric)
            for scan in scans:
                measure, number = _measure(classifier, scan)
                measures.append(measure)
                predicted.append(number)
                bar.advance()
    calibration = make_class_calibration(
        job.passes, models[0].sha256, job.origin, measures, len(models)
    )
    ensemble = EnsembleClassCalibration((calibration,), models[0].network.ordinal)
    calibrated = [
        ensemble.apply(measure.probabilities, number)
        for measure, number in zip(measures, predicted, strict=True)
    ]
    _write_measures(job, models[0].classes, measures, predicted, calibrated)
    _describe(calibration, measures, calibrated)
    return job.write(calibration, models)


def _measure(classifier: ScanClassifier, scan: LabelledScan) -> tuple[ClassMeasure, int]:
    """The measure of a scan, and the index of the class that is predicted.

    Raises:
        DataError: its class is none of those that the network was trained on.
    """
    names = classifier.models[0].classes
    prepared, grade = scan.read()
    if str(grade) not in names:
        raise DataError(
            f"{printable(scan.case)}: has the class {grade}, which the run was not trained on "
            f"({', '.join(map(printable, names))}); leave the scan out"
        )
    votes = classifier.classify(prepared)
    measure = ClassMeasure(
        case=scan.case,
        subject=scan.subject,
        probabilities=tuple(votes.probabilities),
        truth=names.index(str(grade)),
    )
    return measure, names.index(votes.value)


def _write_measures(
    job: CalibrationJob,
    names: Sequence[str],
    measures: Sequence[ClassMeasure],
    predicted: Sequence[int],
    calibrated: Sequence[CalibratedClasses],
) -> None:
    """Write the measures as a table; the calibration is fitted to these same scans."""
    header = ["case", "subject", "network", "true_class", "class", "set"]
    header += [f"{prefix}_{name}" for prefix in ("probability", "calibrated") for name in names]
    networks = job.network_of
    rows = []
    for measure, number, scan in zip(measures, predicted, calibrated, strict=True):
        classes = [names[measure.truth], names[number], " ".join(names[c] for c in scan.set)]
        shares = [*measure.probabilities, *scan.probabilities]
        rows.append([measure.case, measure.subject, networks[measure.case], *classes, *shares])
    write_csv(job.table, header, rows)


def _describe(
    calibration: ClassCalibration,
    measures: Sequence[ClassMeasure],
    calibrated: Sequence[CalibratedClasses],
) -> None:
    """Print what the calibration changes, and what it can promise."""
    before = statistics.fmean(max(measure.probabilities) for measure in measures)
    after = statistics.fmean(max(scan.probabilities) for scan in calibrated)
    right = statistics.fmean(
        int(np.argmax(measure.probabilities)) == measure.truth for measure in measures
    )
    echo(
        f"temperature {calibration.temperature:.2f}: the most probable class has a probability of "
        f"{before:.2f} before and {after:.2f} after, and is the true one of {100 * right:.0f} %"
    )
    few = ", the most that so few subjects can promise" if calibration.subjects < 9 else ""
    size = statistics.fmean(len(scan.set) for scan in calibrated)
    echo(
        f"sets of classes contain the true class of {100 * calibration.level:.0f} % of such "
        f"scans{few}; they have {size:.1f} of {len(measures[0].probabilities)} classes on average"
    )
