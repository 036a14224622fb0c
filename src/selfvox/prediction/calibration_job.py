"""What a calibration is made of: networks, passes, and the scans that each of them measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfvox.prediction.labelled_scans import LabelledScan
from selfvox.prediction.trained_model import TrainedModel
from selfvox.runs.device import Fabric
from selfvox.uncertainty.calibration_file import (
    AnyCalibration,
    calibration_file,
    write_calibration,
)
from selfvox.uncertainty.ensemble import PassSettings


@dataclass(frozen=True, kw_only=True)
class CalibrationJob:
    """Networks to calibrate, on scans that they were not trained on."""

    place: Path  # a run, or a folder of folds
    runs: Sequence[Path]
    passes: PassSettings
    scans: Sequence[Sequence[LabelledScan]]  # of each network
    origin: str  # which scans, in words
    fabric: Fabric

    @property
    def count(self) -> int:
        """Number of scans."""
        return sum(map(len, self.scans))

    @property
    def table(self) -> Path:
        """Where the measures of the scans are written."""
        file = calibration_file(self.place if len(self.runs) > 1 else self.runs[0])
        return file.with_suffix(".csv")

    def write(self, calibration: AnyCalibration, models: Sequence[TrainedModel]) -> list[Path]:
        """Write the calibration of all networks next to the weights of each."""
        return [
            write_calibration(run, dataclasses.replace(calibration, network_sha256=model.sha256))
            for run, model in zip(self.runs, models, strict=True)
        ]

    @property
    def network_of(self) -> dict[str, str]:
        """By case, the name of the run that measures it."""
        return {
            scan.case: run.resolve().name
            for run, scans in zip(self.runs, self.scans, strict=True)
            for scan in scans
        }
