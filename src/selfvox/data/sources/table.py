"""A table (CSV or TSV) with one case per row: `image`, `label`, `subject`, `grade`.

Several channels have a column each, `image_NAME`. Every column but the image is optional and may
have empty cells; other columns are not used. Columns are separated by `,`, `;` or tab. Paths are
relative to the table and stay inside its folder, links resolved. A person who names the table
itself may have absolute paths in it; a table found in a folder may not. Grades are whole numbers
from 0.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import (
    channels_of,
    count_of,
    first_names,
    name_scans,
    read_lines,
    resolve_inside,
)
from selfvox.errors import DataError, did_you_mean

_ENDINGS = (".csv", ".tsv")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_OPTIONAL = ("label", "subject", "grade")
_IMAGE = re.compile(r"image(?:_(.+))?")
_GRADE = re.compile(r"\d{1,3}", re.ASCII)


@dataclass(frozen=True)
class _Content:
    """The text of a table."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]  # line number, cell by column
    notes: list[str]

    @property
    def channels(self) -> dict[str, str]:
        """The name of the channel of each column of images, in order."""
        matches = {name: _IMAGE.fullmatch(name) for name in self.columns}
        return {name: match[1] or "image" for name, match in matches.items() if match}


@dataclass(frozen=True)
class _Row:
    """One case."""

    place: str  # in the table, for messages
    images: tuple[Path, ...]
    label: Path | None
    subject: str
    grade: int | None


def looks_like(root: Path) -> bool:
    """A CSV or TSV file, or a folder with one that has a column of images."""
    return root.suffix.lower() in _ENDINGS if root.is_file() else bool(_tables(root))


def read_dataset(root: Path) -> Dataset:
    """List the rows of the table, or of the one table in the folder.

    Raises:
        DataError: there is no such table, or several; a row is wrong or names an absent file.
    """
    table = root if root.is_file() else _only_table(root)
    content = _read_content(table)
    rows = [
        _row(number, cells, list(content.channels), table, absolute=root.is_file())
        for number, cells in content.rows
    ]
    _check_files(table, rows)
    _check_dimensions(table, rows)

    first_images = [row.images[0] for row in rows]
    ids, subjects = name_scans(first_images, table.parent)
    cases = [
        Case(
            id=id,
            subject=naming.safe_name(row.subject) if row.subject else subject_of_path,
            images=row.images,
            label=row.label,
            grade=row.grade,
            listed=True,
        )
        for id, subject_of_path, row in zip(ids, subjects, rows, strict=True)
    ]
    cases.sort(key=case_key)
    channel_names = tuple(content.channels.values())
    if list(content.channels) == ["image"]:  # a file may have one channel, or those of colours
        # of one file; the others are checked when they are read
        channel_names = channels_of(first_images[0])
    notes = (*content.notes, *_remarks(rows))
    return Dataset(table.parent, "table", tuple(cases), channel_names, None, notes)


def _only_table(folder: Path) -> Path:
    tables = _tables(folder)
    if not tables:
        raise DataError(
            f"{printable(folder)}: no CSV or TSV with a column 'image'; add one, or name a table"
        )
    if len(tables) > 1:
        raise DataError(
            f"{printable(folder)}: several tables with images ({first_names(tables)}); name one"
        )
    return tables[0]


def _tables(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in files if path.suffix.lower() in _ENDINGS and _has_images(path)]


def _has_images(path: Path) -> bool:
    try:
        header = read_lines(path)[0]
    except (DataError, OSError):
        return False
    return any(_IMAGE.fullmatch(name) for name in _names(header, _separator(header)))


def _separator(header: str) -> str:
    # in the header, since names of columns hardly contain one
    return max(_SEPARATORS, key=header.count)


def _names(header: str, separator: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]


def _read_content(table: Path) -> _Content:
    lines = read_lines(table)
    separator = _separator(lines[0])
    columns = _names(lines[0], separator)
    location = f"{printable(table)} (separated by {_SEPARATORS[separator]})"
    _check_columns(columns, location)
    rows = _read_rows(lines[1:], columns, separator, location)
    if not rows:
        raise DataError(f"{location} has a header but no rows; add one per case")
    unused = [name for name in columns if name not in _OPTIONAL and not _IMAGE.fullmatch(name)]
    if not unused:
        return _Content(columns, rows, [])
    listed = ", ".join(printable(name[:30]) for name in unused[:10])
    return _Content(columns, rows, [f"columns not used: {listed}"])


def _check_columns(columns: Sequence[str], location: str) -> None:
    """Images are named, in one column or in one per channel, and no name occurs twice."""
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{location} has two columns '{printable(repeated[0])}'; rename one")
    images = [name for name in columns if _IMAGE.fullmatch(name)]
    if not images:
        listed = ", ".join(printable(name[:30]) for name in columns[:6]) or "none"
        remedy = "add it"
        for name in columns:
            if did_you_mean(name, ["image"]).startswith("; did"):
                remedy = f"rename '{printable(name)}'"
                break
        raise DataError(f"{location} has no column 'image'; {remedy} (its columns: {listed})")
    # which channel the plain one is would be a guess
    if "image" in images and len(images) > 1:
        raise DataError(
            f"{location} has 'image' and '{printable(images[-1])}'; "
            "name every channel image_NAME, or only one image"
        )


def _read_rows(
    lines: Sequence[str], columns: Sequence[str], separator: str, location: str
) -> list[tuple[int, dict[str, str]]]:
    """The rows that are not empty, with their line numbers."""
    rows = []
    # strict: a stray quote would swallow the rows up to the next one
    reader = csv.reader((line + "\n" for line in lines), delimiter=separator, strict=True)
    try:
        for cells in reader:
            number = reader.line_num + 1  # the header is line 1
            too_few = 0 < len(cells) < len(columns) and any(cells)
            if len(cells) > len(columns) or too_few:
                raise DataError(
                    f"{location} line {number} has {len(cells)} cells under {len(columns)} "
                    "columns; quote cells that contain separators"
                )
            if any(cell.strip() for cell in cells):
                named = zip_longest(columns, cells, fillvalue="")
                rows.append((number, {name: cell.strip() for name, cell in named}))
    except csv.Error as error:
        raise DataError(
            f"{location} line {reader.line_num + 1}: {error}; correct that line"
        ) from None
    return rows


def _row(
    number: int, cells: dict[str, str], channels: Sequence[str], table: Path, absolute: bool
) -> _Row:
    place = f"line {number}"
    location = f"{printable(table)} {place}"
    empty = [name for name in channels if not cells[name]]
    if empty:
        raise DataError(f"{location} has no {printable(empty[0])}; add its path or remove the row")
    folder = table.parent
    images = tuple(resolve_inside(folder, cells[name], table, absolute) for name in channels)
    unreadable = [image for image in images if not suffix(image)]
    if unreadable:
        raise DataError(
            f"{location} names {first_names(unreadable)}, which is not a scan that can be read; "
            "correct it"
        )
    label = cells.get("label")
    grade = cells.get("grade")
    if grade and not _GRADE.fullmatch(grade):
        raise DataError(
            f"{location} has the grade '{printable(grade[:20])}'; "
            "write a whole number from 0 to 999, or nothing"
        )
    return _Row(
        place=place,
        images=images,
        label=resolve_inside(folder, label, table, absolute) if label else None,
        subject=cells.get("subject", ""),
        grade=int(grade) if grade else None,
    )


def _check_files(table: Path, rows: Sequence[_Row]) -> None:
    """Every file exists and is listed once; a label may belong to several rows."""
    place_of: dict[Path, str] = {}
    for row in rows:
        files = row.images if row.label is None else (*row.images, row.label)
        absent = [path for path in files if not path.is_file()]
        if absent:
            raise DataError(
                f"{printable(table)} {row.place} names {first_names(absent)}, "
                f"but no such file exists{_absent_elsewhere(rows)}; correct it"
            )
        for path in row.images:
            # links resolved, so that one file under two names counts as one
            place = place_of.setdefault(path.resolve(), row.place)
            if place is not row.place:
                raise DataError(
                    f"{printable(table)} {place} and {row.place} both name {first_names([path])}; "
                    "keep one row each"
                )
        if len(set(files)) < len(files):
            raise DataError(f"{printable(table)} {row.place} names one file twice; correct it")
    for row in rows:
        if row.label and row.label.resolve() in place_of:
            raise DataError(
                f"{printable(table)} {row.place} has a label that is also an image; correct it"
            )


def _absent_elsewhere(rows: Sequence[_Row]) -> str:
    """How many scans are absent, if several: then the table is probably in a wrong folder."""
    absent = sum(not path.is_file() for row in rows for path in row.images)
    return f" ({absent} scans of the table are absent)" if absent > 1 else ""


def _check_dimensions(table: Path, rows: Sequence[_Row]) -> None:
    """All scans are volumes, or all are pictures."""
    if len({suffix(image) in SUFFIXES_2D for row in rows for image in row.images}) > 1:
        raise DataError(f"{printable(table)} names volumes and pictures; make one table of each")


def _remarks(rows: Sequence[_Row]) -> list[str]:
    notes = []
    listed = {path for row in rows for path in (*row.images, row.label) if path}
    folders = sorted({image.parent for row in rows for image in row.images})
    scans = {
        path
        for folder in folders
        for path in folder.iterdir()
        if suffix(path) and not path.name.startswith(".")
    }
    unlisted = sorted(scans - listed)
    if unlisted:
        notes.append(
            f"{count_of(len(unlisted), 'scan')} next to those of the table not listed: "
            f"{first_names(unlisted)}"
        )
    for column, missing in (
        ("label", sum(row.label is None for row in rows)),
        ("grade", sum(row.grade is None for row in rows)),
        ("subject", sum(not row.subject for row in rows)),
    ):
        if 0 < missing < len(rows):
            notes.append(f"{missing} of {len(rows)} cases have no {column}")
    grades = {row.grade for row in rows if row.grade is not None}
    if len(grades) == 1 and len(rows) > 1:
        notes.append(f"all grades are {grades.pop()}: nothing to tell apart")
    return notes
