"""Whether statements of certainty about classes are true: probabilities, sets, and the truth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from selfvox.evaluation.certainty import MIN_SCANS, share_interval
from selfvox.prediction.class_table import ClassTable
from selfvox.runs.progress import echo

LEAST = 1e-6  # of a probability whose logarithm is taken: files have six digits


def report_class_certainty(table: ClassTable, truth: Mapping[str, int]) -> dict[str, float]:
    """Print how true probabilities are, and how often sets contain the true class.

    Args:
        table: predictions.
        truth: index of the true class by case, of cases with a prediction.

    Returns:
        `set_coverage` and `set_size`, the share of the sets that contain the true class and the
        mean number of their classes; empty where not every case has a set.
    """
    if len(truth) < MIN_SCANS:
        return {}
    _report_probabilities(table, truth)
    if not truth.keys() <= table.sets.keys():
        return {}
    return _report_sets(table, truth)


def _report_probabilities(table: ClassTable, truth: Mapping[str, int]) -> None:
    """Probability of the most probable class against how often it is the true one."""
    right = [int(np.argmax(table.probabilities[case])) == truth[case] for case in truth]
    accuracy = statistics.fmean(right)
    low, high = share_interval(accuracy, len(right))
    texts = []
    is_calibrated = truth.keys() <= table.calibrated.keys()
    named = {"before": table.probabilities, "after calibration": table.calibrated}
    for name, probabilities in named.items() if is_calibrated else [("", table.probabilities)]:
        largest = statistics.fmean(max(probabilities[case]) for case in truth)
        loss = statistics.fmean(
            -np.log(max(LEAST, probabilities[case][number])) for case, number in truth.items()
        )
        texts.append(f"mean {largest:.3f} and log loss {loss:.3f} {name}".strip())
    note = "" if is_calibrated else " (not calibrated)"
    echo(
        f"probability of the most probable class{note}: {', '.join(texts)}; it is the true one in "
        f"{accuracy:.3f} ({low:.3f} to {high:.3f}) of {len(truth)} scans"
    )


def _report_sets(table: ClassTable, truth: Mapping[str, int]) -> dict[str, float]:
    """How many sets contain the true class, and how large they are."""
    covered = [number in table.sets[case] for case, number in truth.items()]
    share = statistics.fmean(covered)
    size = statistics.fmean(len(table.sets[case]) for case in truth)
    level = min(table.levels[case] for case in truth)
    low, high = share_interval(share, len(covered))
    echo(
        f"{100 * level:.0f} % sets of classes: {sum(covered)} of {len(covered)} contain the true "
        f"class, {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f} %); {size:.2f} of "
        f"{len(table.classes)} classes on average"
    )
    return {"set_coverage": share, "set_size": size}
