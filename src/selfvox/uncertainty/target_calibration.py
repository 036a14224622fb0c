"""The calibration of a regression network: how far the truth may be from a predicted number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pydantic

from selfvox.uncertainty.calibration_file import WholeScanCalibration, made_with
from selfvox.uncertainty.conformal import conformal_quantile, largest_of_subjects
from selfvox.uncertainty.ensemble import PassSettings


@dataclass(frozen=True, kw_only=True)
class TargetCalibration(WholeScanCalibration):
    """The calibration of a regression network, for passes like those it was made with."""

    # of the predicted number, in its unit
    largest_error: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class TargetMeasure:
    """A predicted number and the true one."""

    case: str
    subject: str
    predicted: float
    truth: float

    @property
    def error(self) -> float:
        """Absolute."""
        return abs(self.predicted - self.truth)


def make_target_calibration(
    settings: PassSettings,
    sha256: str,
    scans: str,
    measures: Sequence[TargetMeasure],
    networks: int = 1,
) -> TargetCalibration:
    """Fit the interval: split conformal prediction by the absolute error (Lei et al. 2018).

    Args:
        settings: of the passes that measured.
        sha256: of the network's weights; of several that measured, those of the first.
        scans: which scans were measured, in words.
        measures: of at least `MIN_SUBJECTS` subjects.
        networks: that measured, each its own scans.
    """
    errors = largest_of_subjects(
        [measure.subject for measure in measures], [measure.error for measure in measures]
    )
    return TargetCalibration(
        **made_with(settings, sha256, scans, len(measures), len(errors), networks),
        largest_error=conformal_quantile(errors),
    )


def largest_error(calibrations: Sequence[TargetCalibration]) -> tuple[float, float]:
    """The error that the mean of several networks is taken to have at most, and how often.

    Of each scan, the error of the mean is at most the mean of the errors. This is not so of their
    quantiles, of which the mean is taken here: of networks that err on different scans, the level
    is an estimate and no promise.
    """
    error = statistics.fmean(calibration.largest_error for calibration in calibrations)
    return error, min(calibration.level for calibration in calibrations)
