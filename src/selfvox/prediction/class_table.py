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

ID_COLUMN = "id"
FILE_COLUMN = "file"
CLASS_COLUMN = "class"
PROBABILITY_PREFIX = "probability"

# columns of one class each, `PREFIX_CLASS`: prefix and key of the answer
_CLASS_COLUMNS = {PROBABILITY_PREFIX: "probabilities"}
_VOTE_COLUMNS = {"low": "low", "high": "high", "votes": "votes"}
_SCAN_COLUMNS = ("entropy", "trust")  # of several passes


@dataclass(frozen=True)
class ClassTable:
    """The content of a table of predicted classes."""

    classes: tuple[str, ...]
    predicted: dict[str, int]  # index of the class by case id
    probabilities: dict[str, list[float]]  # in the order of the classes, by case id


def probability_column(name: str) -> str:
    """The column with the probability of the class `name`."""
    return f"{PROBABILITY_PREFIX}_{name}"


def write_class_table(
    path: Path,
    cases: Sequence[Case],
    answers: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    with_votes: bool,
) -> None:
    """Write the answers that exist, in the order of the cases.

    Args:
        path: of the table.
        cases: of the data set.
        answers: by case id, as `ClassVotes.to_json` gives them.
        classes: their names.
        with_votes: whether the answers are of several passes.
    """
    class_columns = {**_CLASS_COLUMNS, **(_VOTE_COLUMNS if with_votes else {})}
    scan_columns = _SCAN_COLUMNS if with_votes else ()
    header = [ID_COLUMN, FILE_COLUMN, CLASS_COLUMN]
    header += [f"{prefix}_{name}" for prefix in class_columns for name in classes]
    header += scan_columns
    rows = []
    for case in cases:
        if case.id not in answers:
            continue
        answer = answers[case.id]
        row = [case.id, main_file(case), answer["class"]]
        for key in class_columns.values():
            row += answer[key]
        row += [answer[key] for key in scan_columns]
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
        predicted = {}
        probabilities = {}
        for row in reader:
            case = _without_quote(row[ID_COLUMN] or "")
            try:
                predicted[case] = classes.index(_without_quote(row[CLASS_COLUMN]))
                probabilities[case] = [float(row[probability_column(name)]) for name in classes]
            except (ValueError, TypeError):
                raise DataError(
                    f"{path} line {reader.line_num}: class or probability missing or unknown; "
                    "predict again"
                ) from None
    if not predicted:
        raise DataError(f"{path}: no predictions in it; predict again")
    return ClassTable(classes, predicted, probabilities)


def _without_quote(cell: str) -> str:
    """A cell without the `'` that keeps spreadsheets from running it as a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell
