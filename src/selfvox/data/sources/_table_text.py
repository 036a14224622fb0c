"""The text of tables: separators, header and rows, as spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import re
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from selfvox.data.sources._files import read_lines
from selfvox.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_EXCEL_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)

Rows = list[tuple[int, dict[str, str]]]  # line number, cell by column


class TableText(NamedTuple):
    """A table before its cells are separated."""

    lines: list[str]  # from the header on
    separator: str
    first_line: int  # of the header, in the file


def read_table_text(table: Path) -> TableText:
    """The lines of a table; Excel writes the separator into a line of its own, `sep=;`.

    Raises:
        DataError: it is no text.
    """
    lines = read_lines(table)
    declared = _EXCEL_SEPARATOR.fullmatch(lines[0].strip())
    if declared and declared[1] in SEPARATORS and len(lines) > 1:
        return TableText(lines[1:], declared[1], 2)
    # in the header, since names of columns hardly contain one
    return TableText(lines, max(SEPARATORS, key=lines[0].count), 1)


def column_names(text: TableText) -> list[str]:
    """The names in the header, in lower case."""
    header = next(csv.reader(text.lines[:1], delimiter=text.separator), [])
    return [name.strip().lower() for name in header]


def first_rows(text: TableText, count: int) -> list[dict[str, str]]:
    """The cells of the first rows by column, as far as there are any; checks nothing."""
    columns = column_names(text)
    reader = csv.reader(text.lines[1 : count + 1], delimiter=text.separator)
    return [dict(zip(columns, map(str.strip, cells), strict=False)) for cells in reader]


def read_rows(text: TableText, location: str) -> Rows:
    """The rows that are not empty, with their line numbers.

    Args:
        text: of the table.
        location: the table, for messages.

    Raises:
        DataError: a row has more or fewer cells than the header, or is damaged.
    """
    columns = column_names(text)
    rows = []
    # strict: a stray quote would swallow the rows up to the next one
    lines = (line + "\n" for line in text.lines[1:])
    reader = csv.reader(lines, delimiter=text.separator, strict=True)
    try:
        for cells in reader:
            number = text.first_line + reader.line_num
            surplus = any(cell.strip() for cell in cells[len(columns) :])
            too_few = 0 < len(cells) < len(columns) and any(cells)
            if surplus or too_few:
                raise DataError(
                    f"{location} line {number} has {len(cells)} cells under {len(columns)} "
                    "columns; quote cells that contain separators"
                )
            if any(cell.strip() for cell in cells):
                named = zip_longest(columns, cells[: len(columns)], fillvalue="")
                rows.append((number, {name: cell.strip() for name, cell in named}))
    except csv.Error as error:
        raise DataError(
            f"{location} line {text.first_line + reader.line_num}: {error}; correct that line"
        ) from None
    return rows
