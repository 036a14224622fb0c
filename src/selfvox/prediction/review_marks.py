"""The table of marks: what a person thinks of each prediction, as a report exports it."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.naming import printable
from selfvox.errors import DataError

MARKS_TABLE = "review_marks.csv"
MARKS = ("pass", "fail", "artefact")
COLUMNS = ("case", "mark", "note", "marked", "label_sha256", "corrected")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Mark:
    """What a person thinks of a prediction."""

    mark: str  # one of MARKS; empty where there is only a note or a correction
    note: str
    marked: str  # when, in UTC, such as 2026-01-31T12:00:00Z
    label_sha256: str  # of the file of the label that was looked at; empty without one
    corrected: str  # name of the file that was exported with corrections; empty without any


def read_marks(path: Path) -> dict[str, Mark]:
    """The marks by case id.

    Raises:
        DataError: a column is missing, or a cell is not what it should be.
    """
    marks = {}
    # a spreadsheet may have put a byte order mark in front
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path}: has no column {', '.join(sorted(missing))}; export it again")
        for row in reader:
            cells = {name: _without_quote(row[name] or "") for name in COLUMNS}
            case = cells.pop("case")
            if case in marks:
                raise DataError(f"{path}: has {printable(case)} twice; keep one of its rows")
            if cells["mark"] not in ("", *MARKS):
                raise DataError(
                    f"{path}: the mark of {printable(case)} is '{printable(cells['mark'])}', not "
                    f"{', '.join(MARKS)}; correct it"
                )
            if cells["label_sha256"] and not _SHA256.fullmatch(cells["label_sha256"]):
                raise DataError(
                    f"{path}: label_sha256 of {printable(case)} is no SHA-256; export it again"
                )
            if Path(cells["corrected"]).name != cells["corrected"]:
                raise DataError(
                    f"{path}: corrected of {printable(case)} is no name of a file; correct it"
                )
            marks[case] = Mark(**cells)
    return marks


def _without_quote(cell: str) -> str:
    """A cell without the `'` that keeps spreadsheets from running it as a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@\t\r\n") else cell
