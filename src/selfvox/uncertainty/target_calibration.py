"""The calibration of a regression network: how far the truth may be from a predicted number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from selfvox.uncertainty.calibration_file import passes_mismatch
from selfvox.uncertainty.conformal import conformal_quantile, largest_of_subjects, promised_level
from selfvox.uncertainty.ensemble import PassSettings

Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class TargetCalibration:
    """The calibration of a regression network, for passes like those it was made with."""

    format: Literal[1] = 1
    network_sha256: str
    passes: Count  # 1: a plain prediction, without dropout
    encoder_dropout: Rate
    decoder_dropout: Rate
    dropout_kind: Literal["element", "channel"]
    seed: Annotated[int, pydantic.Field(ge=0)]
    scans: str  # which, in words
    cases: Count
    subjects: Count
    networks: Count = 1  # that measured: each of several, scans that it was not trained on
    level: Share  # that the intervals promise
    # of the predicted number, in its unit
    largest_error: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

    def mismatch(self, settings: PassSettings, sha256: str) -> str | None:
        """Why it says nothing about such predictions of a network; None where it does."""
        reason = passes_mismatch(self, settings, sha256)
        if reason is None and (settings.passes > 1) != (self.passes > 1):
            kind = "several passes" if self.passes > 1 else "a single pass"
            return f"the run is calibrated for {kind}"
        return reason


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
        network_sha256=sha256,
        passes=settings.passes,
        encoder_dropout=settings.dropout.encoder,
        decoder_dropout=settings.dropout.decoder,
        dropout_kind=settings.dropout.kind,
        seed=settings.dropout.seed,
        scans=scans,
        cases=len(measures),
        subjects=len(errors),
        networks=networks,
        level=promised_level(len(errors)),
        largest_error=conformal_quantile(errors),
    )


def largest_error(calibrations: Sequence[TargetCalibration]) -> tuple[float, float]:
    """The error that the mean of several networks does not exceed, and how often that is promised.

    The error of their mean is at most the mean of their errors, so the mean is taken of these too.
    """
    error = statistics.fmean(calibration.largest_error for calibration in calibrations)
    return error, min(calibration.level for calibration in calibrations)
