"""The table of predicted numbers: written by `predict`, read by `evaluate`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data.preparation.prepare_case import main_file
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_csv

_COLUMNS = ("id", "file", "target", "constant")
_SPREAD = ("spread_low", "spread_high")
_INTERVAL = ("low", "high", "level")


@dataclass(frozen=True)
class PredictedTarget:
    """A row of the table."""

    target: float
    constant: float  # median of the training targets
    # that contains the true number with probability `level`; None: no calibration
    interval: tuple[float, float] | None = None
    level: float | None = None


def write_target_table(
    path: Path,
    cases: Sequence[Case],
    answers: Mapping[str, Mapping[str, Any]],
    constant: float,
    with_spread: bool,
    promise: tuple[float, float] | None,
) -> None:
    """Write the answers that exist, in the order of the cases.

    Args:
        path: of the table.
        cases: of the data set.
        answers: by case id, as `PredictedNumber.to_json` gives them.
        constant: median of the training targets.
        with_spread: whether the answers are of several passes.
        promise: of a calibration, the largest error and its probability.
    """
    header = [*_COLUMNS, *(_SPREAD if with_spread else ()), *(_INTERVAL if promise else ())]
    rows = []
    for case in cases:
        if case.id not in answers:
            continue
        answer = answers[case.id]
        number = answer["target"]
        row = [case.id, main_file(case), number, constant]
        if with_spread:
            row += [answer["low"], answer["high"]]
        if promise is not None:
            error, level = promise
            row += [number - error, number + error, level]
        rows.append(row)
    write_csv(path, header, rows)


def read_target_table(path: Path) -> dict[str, PredictedTarget]:
    """The predicted numbers by case id.

    Raises:
        DataError: a column is missing or a cell is not what it should be.
    """
    table = {}
    # a spreadsheet may have put a byte order mark in front
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or [])
        if not set(_COLUMNS) <= columns:
            raise DataError(f"{path}: has no columns {', '.join(_COLUMNS)}; predict again")
        for row in reader:
            try:
                interval = level = None
                if set(_INTERVAL) <= columns:
                    interval = (_number(row["low"]), _number(row["high"]))
                    level = _number(row["level"])
                table[row["id"].removeprefix("'")] = PredictedTarget(
                    _number(row["target"]), _number(row["constant"]), interval, level
                )
            except (ValueError, TypeError):
                raise DataError(
                    f"{path} line {reader.line_num}: a number is missing or damaged; predict again"
                ) from None
    if not table:
        raise DataError(f"{path}: no predictions in it; predict again")
    return table


def _number(cell: str) -> float:
    # a negative number has the quote that keeps spreadsheets from running formulas
    number = float(cell.removeprefix("'"))
    if not math.isfinite(number):
        raise ValueError
    return number
