"""Properties of scans, such as sex or site: from a table that names scans or subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfvox.data.naming import printable
from selfvox.data.sources import Case
from selfvox.data.sources._table_text import column_names, read_rows, read_table_text
from selfvox.errors import DataError, UsageError, did_you_mean

GRADE = "grade"
_BIDS_TABLE = "participants.tsv"
_MOST_CLASSES = 10  # more different numbers than these are measured, not told apart
_MISSING = {"", "n/a", "na", "nan", "none"}


def read_properties(
    cases: Sequence[Case], root: Path, names: Sequence[str], table: Path | None
) -> dict[str, dict[str, str]]:
    """Values by the id of a case, for each property; cases without a value are left out.

    Args:
        cases: of the data set.
        root: its folder.
        names: of the properties: columns of the table, or `grade`.
        table: its first column names scans or subjects; None: `participants.tsv` in the root.

    Raises:
        DataError: the table is missing or cannot be read.
        UsageError: it has no such column, or names none of the scans.
    """
    if not names:
        return {}
    of_grade = {case.id: str(case.grade) for case in cases if case.grade is not None}
    if table is None and set(names) == {GRADE}:
        if not of_grade:
            raise UsageError("by: the scans have no grade; name a column of --table")
        return {GRADE: of_grade}
    file = table or (root if root.is_dir() else root.parent) / _BIDS_TABLE
    if table is None and not file.is_file():
        raise UsageError(f"by: there is no {file}; name a table by --table")
    columns, rows = _read_table(file)
    properties = {}
    for name in map(str.lower, names):
        if name == GRADE and name not in columns:
            properties[name] = of_grade
            continue
        if name not in columns:
            raise UsageError(f"by: {file} has no column {name}{did_you_mean(name, columns)}")
        values = {case.id: row[name] for case in cases if (row := _row_of(case, rows))}
        properties[name] = {
            case: value for case, value in values.items() if value.lower() not in _MISSING
        }
        if values and not properties[name]:
            raise UsageError(f"by: {file} has no {name} of any of the scans; name another column")
        if not values:
            raise UsageError(
                f"{file}: its column {columns[0]} names none of the scans, such as "
                f"{printable(cases[0].id)}; name scans or subjects there"
            )
    return properties


def is_number(values: Sequence[str]) -> bool:
    """Whether a property is measured, such as an age, rather than a name or a grade."""
    try:
        numbers = {float(value) for value in values}
    except ValueError:
        return False
    return len(numbers) > _MOST_CLASSES


def _read_table(file: Path) -> tuple[list[str], dict[str, Mapping[str, str]]]:
    """Names of the columns in lower case, and rows by the value of the first one."""
    text = read_table_text(file)
    columns = column_names(text)
    if len(columns) < 2:
        raise DataError(f"{file}: has fewer than two columns; separate them by commas or tabs")
    return columns, {row[columns[0]]: row for _, row in read_rows(text, str(file))}


def _row_of(case: Case, rows: Mapping[str, Mapping[str, str]]) -> Mapping[str, str] | None:
    """The row that names the case, its file or its subject."""
    names = (case.id, case.file, Path(case.file).name, case.subject, f"sub-{case.subject}")
    return next((rows[name] for name in names if name in rows), None)
