"""Predict a number of one scan in memory, such as the age of a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.preparation.recipe import PreparedScan
from selfvox.errors import UsageError
from selfvox.prediction.classify import ScanPasses
from selfvox.prediction.trained_model import TrainedRegressor
from selfvox.uncertainty import ensemble
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.review import INTERVAL


@dataclass(frozen=True)
class PredictedNumber:
    """What the passes over one scan say."""

    mean: float
    low: float  # 5th percentile over the passes
    high: float  # 95th percentile over the passes

    def to_json(self, with_spread: bool) -> dict[str, float]:
        """As `cases.jsonl` stores it; of a single pass, the number alone."""
        answer = {"target": self.mean}
        return {**answer, "low": self.low, "high": self.high} if with_spread else answer


def predict_number(passes: ScanPasses, prepared: PreparedScan) -> PredictedNumber:
    """The mean over all passes of all networks of one prepared scan, and their spread."""
    numbers = passes.passes(prepared.data)[:, 0].numpy()
    low, high = np.percentile(numbers, INTERVAL)
    return PredictedNumber(float(numbers.mean()), float(low), float(high))


def check_vote(
    models: Sequence[TrainedRegressor], settings: PassSettings, runs: Sequence[Path]
) -> None:
    """Refuse networks without a common mean, and votes and maps that numbers do not have.

    Args:
        models: the leading one first.
        settings: of the passes.
        runs: their folders, for the message.

    Raises:
        UsageError: names the first such run or setting.
    """
    if settings.maps:
        raise UsageError(
            f"maps: {runs[0]} predicts a number of whole scans, which have no maps; leave --maps "
            "out"
        )
    if settings.vote not in ("majority", "mean"):
        raise UsageError(
            f"vote: {runs[0]} predicts a number, of which passes have a mean; leave --vote out"
        )
    ensemble.check_compatible(runs, [{"recipe": model.recipe} for model in models])
    axes = [model.mirror_axes for model in models]
    ensemble.check_mirror(settings, dict(zip(runs, axes, strict=True)))
