"""The table of predicted classes: written by `predict`, read by `evaluate`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data.preparation.prepare_case import main_file
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_csv
from selfvox.uncertainty.class_calibration import EnsembleClassCalibration

ID_COLUMN = "id"
FILE_COLUMN = "file"
CLASS_COLUMN = "class"
NAME_COLUMN = "name"  # of the class, where it is not the grade
PROBABILITY_PREFIX = "probability"
CALIBRATED_PREFIX = "calibrated"
SET_COLUMN = "set"  # classes, separated by spaces
LEVEL_COLUMN = "level"

# columns of one class each, `PREFIX_CLASS`: prefix and key of the answer
_CLASS_COLUMNS = {PROBABILITY_PREFIX: "probabilities"}
_VOTE_COLUMNS = {"spread_low": "low", "spread_high": "high", "votes": "votes"}
_SCAN_COLUMNS = ("entropy", "trust")  # of several passes


@dataclass(frozen=True)
class ClassTable:
    """The content of a table of predicted classes."""

    classes: tuple[str, ...]
    predicted: dict[str, int]  # index of the class by case id
    probabilities: dict[str, list[float]]  # in the order of the classes, by case id
    # by a calibration, likewise; empty where there was none
    calibrated: dict[str, list[float]]
    sets: dict[str, set[int]]  # indices of the classes by case id
    levels: dict[str, float]  # that the sets promise, by case id


def probability_column(name: str) -> str:
    """The column with the probability of the class `name`."""
    return f"{PROBABILITY_PREFIX}_{name}"


def calibrated_column(name: str) -> str:
    """The column with the calibrated probability of the class `name`."""
    return f"{CALIBRATED_PREFIX}_{name}"


def write_class_table(
    path: Path,
    cases: Sequence[Case],
    answers: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    with_votes: bool,
    calibration: EnsembleClassCalibration | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write the answers that exist, in the order of the cases.

    Args:
        path: of the table.
        cases: of the data set.
        answers: by case id, as `ClassVotes.to_json` gives them.
        classes: their grades.
        with_votes: whether the answers are of several passes.
        calibration: of the networks; adds calibrated probabilities and sets of classes.
        names: of the classes; a column, where they are not the grades.
    """
    has_names = names is not None and names != classes
    class_columns = {**_CLASS_COLUMNS, **(_VOTE_COLUMNS if with_votes else {})}
    scan_columns = _SCAN_COLUMNS if with_votes else ()
    header = [ID_COLUMN, FILE_COLUMN, CLASS_COLUMN]
    header += [NAME_COLUMN] if has_names else []
    header += [f"{prefix}_{name}" for prefix in class_columns for name in classes]
    header += scan_columns
    if calibration is not None:
        header += [*map(calibrated_column, classes), SET_COLUMN, LEVEL_COLUMN]
    rows = []
    for case in cases:
        if case.id not in answers:
            continue
        answer = answers[case.id]
        number = classes.index(answer["class"])
        row = [case.id, main_file(case), answer["class"]]
        row += [names[number]] if names is not None and has_names else []
        for key in class_columns.values():
            row += answer[key]
        row += [answer[key] for key in scan_columns]
        if calibration is not None:
            calibrated = calibration.apply(answer["probabilities"], number)
            in_set = " ".join(classes[each] for each in calibrated.set)
            row += [*calibrated.probabilities, in_set, calibration.level]
        rows.append(row)
    write_csv(path, header, rows)


def read_class_table(path: Path) -> ClassTable:
    """Read a table of predicted classes.

    Raises:
        DataError: a column is missing or a cell is not what it should be.
    """
    prefix = probability_column("")
    # a spreadsheet may have put a byte order mark in front
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        classes = tuple(name.removeprefix(prefix) for name in columns if name.startswith(prefix))
        if not {ID_COLUMN, CLASS_COLUMN} <= set(columns) or len(classes) < 2:
            raise DataError(
                f"{path}: columns missing; it needs id, class and {probability_column('NAME')} "
                "of each class: predict again"
            )
        is_calibrated = {SET_COLUMN, LEVEL_COLUMN, *map(calibrated_column, classes)} <= set(columns)
        table = ClassTable(classes, {}, {}, {}, {}, {})
        for row in reader:
            case = _without_quote(row[ID_COLUMN] or "")
            try:
                table.predicted[case] = classes.index(_without_quote(row[CLASS_COLUMN]))
                table.probabilities[case] = [float(row[probability_column(c)]) for c in classes]
                if is_calibrated:
                    table.calibrated[case] = [float(row[calibrated_column(c)]) for c in classes]
                    names = _without_quote(row[SET_COLUMN]).split()
                    table.sets[case] = {classes.index(name) for name in names}
                    table.levels[case] = float(row[LEVEL_COLUMN])
            except (ValueError, TypeError):
                raise DataError(
                    f"{path} line {reader.line_num}: class or probability missing or unknown; "
                    "predict again"
                ) from None
    if not table.predicted:
        raise DataError(f"{path}: no predictions in it; predict again")
    return table


def _without_quote(cell: str) -> str:
    """A cell without the `'` that keeps spreadsheets from running it as a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell
