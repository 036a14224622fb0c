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

    By the validation score; by the loss, as a negative number, where the last fifth or the steps
    before it have no score. See `training.trend` for what counts.

    Returns:
        0 if it did not improve; None if the metrics do not tell.
    """
    score = VALIDATION_METRICS[results[0].key]
    curves = {metric: curve(results, metric) for metric in (score, "loss")}
    lines = [
        {"step": step, metric: float(np.mean(values))}
        for metric, by_step in curves.items()
        for step, values in by_step.items()
    ]
    steps = max((step for by_step in curves.values() for step in by_step), default=0)
    rise = late_rise(lines, score, steps)
    if rise is not None:
        return rise
    fall = late_fall(lines, steps)
    return -fall if fall else fall
