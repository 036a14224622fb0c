"""Whether the runs of a study were long enough: their curves by step, and how these end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfvox.runs.run_folder import read_metrics
from selfvox.studies.class_scores import ACCURACY, KAPPA
from selfvox.studies.results import Result
from selfvox.training.trend import late_fall, late_rise

# the validation metric that belongs to each score
VALIDATION_METRICS = {"dice": "dice_mean", KAPPA: "kappa", ACCURACY: ACCURACY}


def curve(results: Sequence[Result], metric: str) -> dict[int, list[float]]:
    """The values of a metric in all runs, by fine-tuning step."""
    values: dict[int, list[float]] = {}
    for result in results:
        for path in result.paths:
            for line in read_metrics(path):
                if metric in line:
                    values.setdefault(line["step"], []).append(line[metric])
    return dict(sorted(values.items()))


def has_curve(result: Result) -> bool:
    """Whether the metrics of a run were kept."""
    return any(read_metrics(path) for path in result.paths)


def late_change(results: Sequence[Result]) -> float | None:
    """How much the mean of some runs still improved in the last fifth of their steps.

    By the validation score; by the loss, as a negative number, if nothing was validated. See
    `training.trend` for what counts.

    Returns:
        None if it did not improve, or if there are no metrics.
    """
    score = VALIDATION_METRICS[results[0].key]
    for metric in (score, "loss"):
        means = {step: float(np.mean(values)) for step, values in curve(results, metric).items()}
        lines = [{"step": step, metric: mean} for step, mean in means.items()]
        if lines and metric == score:
            return late_rise(lines, metric, max(means))
        if lines:
            fall = late_fall(lines, max(means))
            return None if fall is None else -fall
    return None
