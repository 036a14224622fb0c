"""Predict numbers of whole scans into a folder: one table for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from selfvox.data.sources import Case
from selfvox.prediction.classify import ScanPasses
from selfvox.prediction.output_folder import TARGET_TABLE
from selfvox.prediction.regress import predict_number
from selfvox.prediction.scan_loop import ScanWork
from selfvox.prediction.target_table import write_target_table
from selfvox.prediction.trained_model import TrainedRegressor
from selfvox.prediction.whole_scan_job import WholeScanJob
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty.calibration_file import (
    describe_origin,
    note_other_passes,
    read_calibrations,
)
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.target_calibration import TargetCalibration, largest_error


class RegressionJob(WholeScanJob):
    """Predicts numbers of whole scans: one table for all of them.

    Args:
        models: the leading one first.
        passes: settings of the passes.
        settings: of the verb.
        fabric: device and arithmetic.
    """

    def __init__(
        self,
        models: Sequence[TrainedRegressor],
        passes: PassSettings,
        settings: Predict,
        fabric: Fabric,
    ):
        super().__init__(models, passes, settings, fabric, TARGET_TABLE)
        self._models = models
        self._passes = ScanPasses(models, passes, fabric)
        self.classes = {}

    def predict_case(self, work: ScanWork) -> None:
        """Record the number."""
        comparison = self.check.compare(work.case, work.image, work.prepared)
        number = predict_number(self._passes, work.prepared)
        self.folder.record(
            work.case,
            self.workplace.facts_with_costs(work.began),
            answer=number.to_json(self._passes.votes),
            notes=comparison.notes,
            distance=comparison.distance,
            is_unlike=comparison.is_far,
        )

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write the numbers, with the interval of a calibration where there is one."""
        answers = self.folder.answers()
        write_target_table(
            self.result,
            cases,
            answers,
            sum(model.constant for model in self._models) / len(self._models),
            self._passes.votes,
            self._promise() if answers else None,
        )

    def _promise(self) -> tuple[float, float] | None:
        """The largest error of the calibrations, and its probability; prints why there is none."""
        calibrations = read_calibrations(
            self.runs,
            TargetCalibration,
            lambda made, number: made.mismatch(self.passes, self._models[number].sha256),
            "no intervals of the numbers",
        )
        if calibrations is None:
            return None
        note_other_passes(calibrations, self.passes)
        error, level = largest_error(calibrations)
        about = "about " if len(calibrations) > 1 else ""
        echo(
            f"intervals contain the true number of {about}{100 * level:.0f} % of such scans "
            f"(calibrated on {describe_origin(calibrations)})"
        )
        return error, level
