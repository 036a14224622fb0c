"""Calibration of a study's predictions: means with intervals, and what dropout changes."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from typing import Any

from selfvox.evaluation.calibration import SCORE_NAMES
from selfvox.studies.results import ALL, Result
from selfvox.studies.statistics import compare, mean_of_runs, pair_runs

_SUFFIXES = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")


def calibration_columns(
    results_with: Sequence[Result], results_without: Sequence[Result]
) -> dict[str, float | None]:
    """Each measure of calibration with its 95 % interval, and the paired difference with its own.

    Args:
        results_with: runs that were predicted in a variant.
        results_without: the same runs, predicted without dropout.

    Returns:
        `ece`, `ece_low`, `ece_high`, `ece_difference`, `ece_difference_low`,
        `ece_difference_high` and so on; None where nothing was measured.
    """
    columns: dict[str, float | None] = {}
    for measure in SCORE_NAMES:
        of_variant = _measured(results_with, measure)
        values = _columns(of_variant, _measured(results_without, measure))
        columns |= {measure + suffix: values.get(suffix) for suffix in _SUFFIXES}
    return columns


def _columns(of_variant: Sequence[Result], without: Sequence[Result]) -> dict[str, Any]:
    """The columns of one measure by their suffix."""
    if not of_variant:
        return {}
    mean, error = mean_of_runs(of_variant, ALL)
    low, high = error.interval(mean) if error else (None, None)
    columns: dict[str, Any] = {"": mean, "_low": low, "_high": high}
    comparison = compare(pair_runs(of_variant, without), ALL)
    if comparison is not None:
        difference = comparison.columns()
        columns["_difference"] = difference["difference"]
        columns["_difference_low"] = difference["low"]
        columns["_difference_high"] = difference["high"]
    return columns


def _measured(results: Sequence[Result], measure: str) -> list[Result]:
    """The runs with a measure as their score; without those where it is defined in no scan."""
    measured = []
    for result in results:
        rows = []
        for path in result.paths:
            file = path / "scores_calibration.csv"
            if not file.exists():  # `evaluate` has reported why no scan could be measured
                continue
            with file.open(encoding="utf-8", newline="") as lines:
                rows += [
                    {"case": row["case"], "class": "", "name": ALL, measure: row[measure]}
                    for row in csv.DictReader(lines)
                    if row[measure]
                ]
        if rows:
            measured.append(dataclasses.replace(result, rows=tuple(rows), key=measure))
    return measured
