"""Calibrate regression networks: predict scans with a target, and fit an interval to the errors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from selfvox.prediction.calibration_job import CalibrationJob
from selfvox.prediction.classify import ScanPasses
from selfvox.prediction.regress import predict_number
from selfvox.prediction.trained_model import TrainedRegressor
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo, progress_bar
from selfvox.uncertainty.target_calibration import TargetMeasure, make_target_calibration


def calibrate_regressors(job: CalibrationJob, models: Sequence[TrainedRegressor]) -> list[Path]:
    """Fit one calibration to what all networks measured, and write it for each of them.

    Args:
        job: networks, passes and scans.
        models: the networks.

    Returns:
        The file of each network.
    """
    measures = []
    with progress_bar("calibrate", job.count) as bar:
        for model, scans in zip(models, job.scans, strict=True):
            passes = ScanPasses([model], job.passes, job.fabric)
            for scan in scans:
                prepared, target = scan.read()
                predicted = predict_number(passes, prepared).mean
                measures.append(TargetMeasure(scan.case, scan.subject, predicted, float(target)))
                bar.advance()
    calibration = make_target_calibration(
        job.passes, models[0].sha256, job.origin, measures, len(models)
    )
    networks = job.network_of
    header = ["case", "subject", "network", "true_target", "target", "absolute_error"]
    rows = [
        [one.case, one.subject, networks[one.case], one.truth, one.predicted, one.error]
        for one in measures
    ]
    write_csv(job.table, header, rows)
    few = ", the most that so few subjects can promise" if calibration.subjects < 9 else ""
    mean = statistics.fmean(measure.error for measure in measures)
    echo(
        f"mean absolute error {mean:.3g}; intervals of {calibration.largest_error:.3g} to either "
        f"side contain the true number of {100 * calibration.level:.0f} % of such scans{few}"
    )
    return job.write(calibration, models)
