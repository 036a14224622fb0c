"""Which tables of a folder name scans, and which file a cell of a table names."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources._files import existing_spelling
from selfvox.data.sources._table_text import first_rows, read_table_text
from selfvox.errors import DataError

ENDINGS = (".csv", ".tsv")
IMAGE_COLUMN = re.compile(r"image(?:_(.+))?")
LOOKED_AT = 20  # rows, to see whether a column names files
# of each folder, the files by their name without ending; it is filled when a folder is needed
Stems = dict[Path, dict[str, list[Path]]]


def unread_note(folder: Path) -> list[str]:
    """Tables in a folder that have a column of images, but name no file, and what they lack."""
    notes = []
    for table in _files(folder):
        cells = _image_cells(table)
        if cells and not _name_files(cells, folder):
            notes.append(
                f"{printable(table.name)} not read: no file '{printable(cells[0][:60])}' of its "
                "column of images is there; write paths in a column 'image', and the class of "
                "each scan in a column 'grade'"
            )
    return notes


def tables_in(folder: Path) -> list[Path]:
    """The tables of a folder that name files in it."""
    return [path for path in _files(folder) if _name_files(_image_cells(path), folder)]


def _files(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in files if path.suffix.lower() in ENDINGS]


def _image_cells(table: Path) -> list[str]:
    """What is in the columns of images of the first rows; empty where there is no such column."""
    try:
        rows = first_rows(read_table_text(table), LOOKED_AT)
    except (DataError, OSError, csv.Error):
        return []
    cells = [cell for row in rows for name, cell in row.items() if IMAGE_COLUMN.fullmatch(name)]
    return [cell for cell in cells if cell]


def _name_files(cells: Sequence[str], folder: Path) -> bool:
    """Whether any of the cells names a scan in the folder."""
    stems: Stems = {}
    return any(is_scan(cell, folder, stems) for cell in cells)


def is_scan(cell: str, folder: Path, stems: Stems) -> bool:
    """Whether a cell of a table in this folder names a scan that is there."""
    try:
        path = with_ending(folder / cell, stems)
        return bool(suffix(path)) and path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that contains NUL
        return False


def with_ending(path: Path, stems: Stems) -> Path:
    """The path, or that of the only scan with this name and an ending, where it has none."""
    if suffix(path):
        return existing_spelling(path)
    if path.parent not in stems:
        by_stem = stems.setdefault(path.parent, {})
        for file in path.parent.iterdir() if path.parent.is_dir() else ():
            if suffix(file) and not file.name.startswith("."):
                by_stem.setdefault(naming.stem(file, suffix(file)), []).append(file)
    files = stems[path.parent].get(path.name, [])
    return files[0] if len(files) == 1 else path
