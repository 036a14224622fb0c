"""A table (CSV or TSV) with one case per row: `image`, `label`, `subject`, `grade`, `target`.

Several channels have a column each, `image_NAME`, or are in one file, and `channels.csv` next to
the table names them. Every column but the image is optional and may have empty cells; other columns
are not used. Columns are separated by `,`, `;` or tab. A table that
is found in a folder counts only if its first rows name files. Paths are relative to the table and
stay inside its folder, links resolved; the ending of a file may be missing where one file has that
name. A person who names the table itself may have absolute paths in it; a table found in a folder
may not. Grades are whole numbers from 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import count_of, printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._channel_table import read_channel_names
from selfvox.data.sources._class_table import read_class_table
from selfvox.data.sources._files import (
    first_names,
    name_scans,
    resolve_inside,
)
from selfvox.data.sources._table_files import (
    ENDINGS,
    IMAGE_COLUMN,
    LOOKED_AT,
    Stems,
    is_scan,
    tables_in,
    with_ending,
)
from selfvox.data.sources._table_text import (
    SEPARATORS,
    Rows,
    column_names,
    read_rows,
    read_table_text,
)
from selfvox.errors import DataError, did_you_mean

_OPTIONAL = ("label", "subject", "grade", "target")
_GRADE = re.compile(r"\d{1,3}", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE
)
_SAME_AS_IMAGE = ("path", "file", "filename", "name", "id")  # `image_path` is no channel `path`
_MOST_GRADES = 20  # different ones, in a column that may be of grades


@dataclass(frozen=True)
class _Content:
    """The text of a table."""

    rows: Rows
    channels: dict[str, str]  # the name of the channel of each column of images, in order
    notes: list[str]


@dataclass(frozen=True)
class _Row:
    """One case."""

    place: str  # in the table, for messages
    images: tuple[Path, ...]
    label: Path | None
    subject: str
    grade: int | None
    target: float | None


def looks_like(root: Path) -> bool:
    """A CSV or TSV file, or a folder with one that names files in a column of images."""
    return root.suffix.lower() in ENDINGS if root.is_file() else bool(tables_in(root))


def read_dataset(root: Path) -> Dataset:
    """List the rows of the table, or of the one table in the folder.

    Raises:
        DataError: there is no such table, or several; a row is wrong or names an absent file.
    """
    table = root if root.is_file() else _only_table(root)
    content = _read_content(table)
    stems: Stems = {}
    rows = [
        _row(number, cells, list(content.channels), table, root.is_file(), stems)
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
            target=row.target,
            listed=True,
        )
        for id, subject_of_path, row in zip(ids, subjects, rows, strict=True)
    ]
    cases.sort(key=case_key)
    channel_names = tuple(content.channels.values())
    channel_notes: tuple[str, ...] = ()
    if channel_names == ("image",):
        # those of one file; the others are checked when read
        channel_names, channel_notes = read_channel_names(table.parent, first_images[0])
    is_graded = any(row.grade is not None for row in rows)
    has_labels = any(row.label is not None for row in rows)
    classes, class_notes = read_class_table(table.parent, has_labels or not is_graded)
    notes = (*content.notes, *_remarks(rows), *channel_notes, *class_notes)
    return Dataset(
        root=table.parent,
        source="table",
        cases=tuple(cases),
        channel_names=channel_names,
        classes=classes,
        notes=notes,
        guesses_subjects=not any(row.subject for row in rows),
    )


def _only_table(folder: Path) -> Path:
    tables = tables_in(folder)
    if not tables:
        raise DataError(
            f"{printable(folder)}: no CSV or TSV with a column 'image'; add one, or name a table"
        )
    if len(tables) > 1:
        raise DataError(
            f"{printable(folder)}: several tables with images ({first_names(tables)}); name one"
        )
    return tables[0]


def _read_content(table: Path) -> _Content:
    text = read_table_text(table)
    columns = column_names(text)
    location = f"{printable(table)} (separated by {SEPARATORS[text.separator]})"
    rows = read_rows(text, location)
    channels = _channels(columns, rows, table.parent)
    _check_columns(columns, channels, location)
    if not rows:
        raise DataError(f"{location} has a header but no rows; add one per case")
    unused = [name for name in columns if name and name not in (*_OPTIONAL, *channels)]
    notes = []
    if unused:
        listed = ", ".join(printable(name[:30]) for name in unused[:10])
        notes.append(f"columns not used: {listed}{_grade_hint(unused, rows)}")
    return _Content(rows, channels, notes)


def _channels(columns: Sequence[str], rows: Rows, folder: Path) -> dict[str, str]:
    """The name of the channel of each column of images, in order.

    Where some of several such columns name files, those are meant (`image_id` next to
    `image_path`).
    """
    candidates = {name: match[1] for name in columns if (match := IMAGE_COLUMN.fullmatch(name))}
    stems: Stems = {}
    filled = {
        name: [cells[name] for _, cells in rows[:LOOKED_AT] if cells[name]] for name in candidates
    }
    # an empty column is reported with its first row
    with_files = [
        name
        for name, cells in filled.items()
        if not cells or any(is_scan(cell, folder, stems) for cell in cells)
    ]
    chosen = with_files or list(candidates)
    if len(chosen) == 1 and candidates[chosen[0]] in _SAME_AS_IMAGE:
        return {chosen[0]: "image"}
    return {name: candidates[name] or "image" for name in chosen}


def _grade_hint(unused: Sequence[str], rows: Rows) -> str:
    """Which unused column may be of grades, as `level` and `diagnosis` are."""
    for name in unused:
        values = {cells[name] for _, cells in rows if cells[name]}
        if 1 < len(values) <= _MOST_GRADES and all(map(_GRADE.fullmatch, values)):
            return f"; if {printable(name[:30])} is the class of the scans, call it grade"
    return ""


def _check_columns(columns: Sequence[str], channels: Mapping[str, str], location: str) -> None:
    """Images are named, in one column or in one per channel, and no name occurs twice."""
    # columns without a name are those that Excel keeps after they were emptied
    repeated = [name for name, count in Counter(filter(None, columns)).items() if count > 1]
    if repeated:
        raise DataError(f"{location} has two columns '{printable(repeated[0])}'; rename one")
    if not channels:
        listed = ", ".join(printable(name[:30]) for name in columns[:6]) or "none"
        remedy = "add it"
        for name in columns:
            if did_you_mean(name, ["image"]).startswith("; did"):
                remedy = f"rename '{printable(name)}'"
                break
        raise DataError(f"{location} has no column 'image'; {remedy} (its columns: {listed})")
    # which channel the plain one is would be a guess
    if "image" in channels and len(channels) > 1:
        raise DataError(
            f"{location} has 'image' and '{printable(list(channels)[-1])}'; "
            "name every channel image_NAME, or only one image"
        )


def _row(
    number: int,
    cells: dict[str, str],
    channels: Sequence[str],
    table: Path,
    absolute: bool,
    stems: Stems,
) -> _Row:
    place = f"line {number}"
    location = f"{printable(table)} {place}"
    empty = [name for name in channels if not cells[name]]
    if empty:
        raise DataError(f"{location} has no {printable(empty[0])}; add its path or remove the row")
    folder = table.parent
    images = tuple(
        with_ending(resolve_inside(folder, cells[name], table, absolute), stems)
        for name in channels
    )
    unreadable = [image for image in images if not suffix(image)]
    if unreadable:
        raise DataError(
            f"{location} names {first_names(unreadable)}, which is not a scan that can be read; "
            "correct it"
        )
    label = cells.get("label")
    if label and _GRADE.fullmatch(label):
        raise DataError(
            f"{location} has the number '{label}' as a label, which is a file; if the numbers are "
            "the classes of the scans, call the column grade"
        )
    grade = cells.get("grade")
    if grade and not _GRADE.fullmatch(grade):
        raise DataError(
            f"{location} has the grade '{printable(grade[:20])}'; "
            "write a whole number from 0 to 999, or nothing"
        )
    return _Row(
        place=place,
        images=images,
        label=_label(label, table, absolute, stems) if label else None,
        subject=cells.get("subject", ""),
        grade=int(grade) if grade else None,
        target=_target(cells.get("target", ""), location),
    )


def _target(cell: str, location: str) -> float | None:
    """The number to predict; None where the cell is empty.

    Raises:
        DataError: it is no number.
    """
    if not cell:
        return None
    # of Python's numbers, those that a table has: no nan, inf or 1_000
    if not _NUMBER.fullmatch(cell):
        raise DataError(
            f"{location} has the target '{printable(cell[:20])}'; write a number, or nothing"
        )
    return float(cell)


def _label(cell: str, table: Path, absolute: bool, stems: Stems) -> Path:
    return with_ending(resolve_inside(table.parent, cell, table, absolute), stems)


def _check_files(table: Path, rows: Sequence[_Row]) -> None:
    """Every file exists and is listed once; a label may belong to several rows."""
    place_of: dict[Path, str] = {}
    for row in rows:
        files = row.images if row.label is None else (*row.images, row.label)
        absent = [path for path in files if not path.is_file()]
        if absent:
            raise DataError(
                f"{printable(table)} {row.place} names {first_names(absent)}, "
                f"but no such file exists{_absent_elsewhere(rows)}; correct it, or read the scans "
                "without the table: --source folder"
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
        ("target", sum(row.target is None for row in rows)),
        ("subject", sum(not row.subject for row in rows)),
    ):
        if 0 < missing < len(rows):
            notes.append(f"{missing} of {len(rows)} cases have no {column}")
    grades = {row.grade for row in rows if row.grade is not None}
    if len(grades) == 1 and len(rows) > 1:
        notes.append(f"all grades are {grades.pop()}: nothing to tell apart")
    return notes
