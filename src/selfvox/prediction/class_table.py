"""The table of predicted classes, `predictions.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from selfvox.errors import DataError

TABLE_NAME, CLASS_COLUMN = "predictions.csv", "class"
_PROBABILITY = "probability_"


@dataclass(frozen=True)
class ClassTable:
    """What a table of predictions says."""

    classes: tuple[str, ...]
    found: dict[str, int]  # number of the class by case id
    probabilities: dict[str, list[float]]


def probability_column(name: str) -> str:
    """The column that holds the probability of the class `name`."""
    return f"{_PROBABILITY}{name}"


def read_class_table(path: Path) -> ClassTable:
    """Read a table of predictions.

    Raises:
        DataError: a column is missing or a cell is not what it should be.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        classes = tuple(
            name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY)
        )
        if not {"id", CLASS_COLUMN} <= set(columns) or len(classes) < 2:
            raise DataError(
                f"{path}: has not the columns id, class and {probability_column('NAME')} of each class; predict again"
            )
        found, probabilities = {}, {}
        for row in reader:
            name = _plain(row["id"] or "")
            try:
                found[name] = classes.index(_plain(row[CLASS_COLUMN]))
                probabilities[name] = [float(row[probability_column(each)]) for each in classes]
            except (ValueError, TypeError):
                raise DataError(
                    f"{path} line {reader.line_num}: has no class or probability of its columns; predict again"
                ) from None
    if not found:
        raise DataError(f"{path}: holds no predictions; predict again")
    return ClassTable(classes, found, probabilities)


def _plain(cell: str) -> str:
    """A cell without the `'` that kept spreadsheets from taking it for a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell
