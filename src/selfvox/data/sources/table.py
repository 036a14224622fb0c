"""A table (CSV or TSV) with one case per row: `image`, or `image_NAME` per channel, and `label`, `subject`, `grade`.

Every column but the image is optional and may have empty cells; other columns are not used. Columns are separated by
`,`, `;` or tab. Paths are relative to the table and stay inside its folder, links resolved; a person who names the
table itself may have absolute paths in it, a table found in a folder may not. Grades are whole numbers from 0.
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
from selfvox.data.sources._files import channels_of, contained, counted, few, lines
from selfvox.errors import DataError, did_you_mean

_ENDINGS = (".csv", ".tsv")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_OPTIONAL = ("label", "subject", "grade")
_IMAGE = re.compile(r"image(?:_(.+))?")
_GRADE = re.compile(r"\d{1,3}", re.ASCII)


def looks_like(root: Path) -> bool:
    """A CSV or TSV file, or a folder with one that has a column of images."""
    return root.suffix.lower() in _ENDINGS if root.is_file() else bool(_tables(root))


def read_dataset(root: Path) -> Dataset:
    """List the rows of the table, or of the one table in the folder."""
    tables = [root] if root.is_file() else _tables(root)
    if len(tables) != 1:
        what = (
            f"several tables with images ({few(tables)}); name one"
            if tables
            else "no CSV or TSV with a column 'image'"
        )
        raise DataError(f"{printable(root)} holds {what}")
    table = tables[0]
    columns, rows, notes = _content(table)
    channels = {name: match[1] or "image" for name in columns if (match := _IMAGE.fullmatch(name))}
    found = [_row(row, list(channels), table, absolute=root.is_file()) for row in rows]
    _check(table, found)

    first = [row.images[0] for row in found]
    relative = naming.relative(first, table.parent)
    endings = [suffix(image) for image in first]
    ids, guessed = naming.case_ids(relative, endings), naming.subject_names(relative, endings)
    cases = [
        Case(
            id,
            naming.safe_name(row.subject) if row.subject else guess,
            row.images,
            row.label,
            row.grade,
        )
        for id, guess, row in zip(ids, guessed, found, strict=True)
    ]
    notes += _remarks(table, found)
    names = (
        tuple(channels.values())
        if len(channels) > 1 or "image" not in channels
        else channels_of(first[0])
    )
    return Dataset(
        table.parent, "table", tuple(sorted(cases, key=case_key)), names, None, tuple(notes)
    )


@dataclass(frozen=True)
class _Row:
    place: str
    images: tuple[Path, ...]
    label: Path | None
    subject: str
    grade: int | None


def _tables(folder: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _ENDINGS and _has_images(path)
        )
    except OSError:
        return []


def _has_images(path: Path) -> bool:
    try:
        header = lines(path)[0]
    except DataError:
        return False
    return any(_IMAGE.fullmatch(name) for name in _names(header, _separator(header)))


def _separator(header: str) -> str:
    return max(_SEPARATORS, key=header.count)


def _names(header: str, separator: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]


def _content(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[str]]:
    """The names of the columns, the rows with their line numbers, and notes."""
    text = lines(table)
    separator = _separator(text[0])
    columns, where = (
        _names(text[0], separator),
        f"{printable(table)} (separated by {_SEPARATORS[separator]})",
    )
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise DataError(f"{where} has two columns '{printable(twice[0])}'; rename one")
    images = [name for name in columns if _IMAGE.fullmatch(name)]
    if not images:
        there = ", ".join(printable(name[:30]) for name in columns[:6]) or "none"
        near = next(
            (name for name in columns if did_you_mean(name, ["image"]).startswith("; did")), None
        )
        remedy = f"rename '{printable(near)}'" if near else "add it"
        raise DataError(f"{where} has no column 'image'; {remedy} (its columns: {there})")
    if "image" in images and len(images) > 1:
        raise DataError(
            f"{where} has 'image' and '{printable(images[-1])}'; name every channel image_NAME, or only one image"
        )
    rows = []
    reader = csv.reader((line + "\n" for line in text[1:]), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if len(cells) > len(columns) or (0 < len(cells) < len(columns) and any(cells)):
                place = f"{where} line {reader.line_num + 1}"
                raise DataError(
                    f"{place} has {len(cells)} cells under {len(columns)} columns; quote what holds separators"
                )
            if any(cell.strip() for cell in cells):
                rows.append(
                    (
                        reader.line_num + 1,
                        {n: c.strip() for n, c in zip_longest(columns, cells, fillvalue="")},
                    )
                )
    except csv.Error as error:
        raise DataError(f"{where} line {reader.line_num + 1}: {error}; correct that line") from None
    if not rows:
        raise DataError(f"{where} has a header but no rows; add one per case")
    unused = [name for name in columns if name not in (*images, *_OPTIONAL)]
    notes = (
        [f"columns not used: {', '.join(printable(name[:30]) for name in unused[:10])}"]
        if unused
        else []
    )
    return columns, rows, notes


def _row(
    numbered: tuple[int, dict[str, str]], channels: Sequence[str], table: Path, absolute: bool
) -> _Row:
    number, cells = numbered
    place = f"line {number}"
    where = f"{printable(table)} {place}"
    empty = [name for name in channels if not cells[name]]
    if empty:
        raise DataError(f"{where} has no {printable(empty[0])}; add its path or remove the row")
    images = tuple(contained(table.parent, cells[name], table, absolute) for name in channels)
    strange = [image for image in images if not suffix(image)]
    if strange:
        raise DataError(
            f"{where} names {few(strange)}, which is not a scan that can be read; correct it"
        )
    label, grade = cells.get("label"), cells.get("grade")
    if grade and not _GRADE.fullmatch(grade):
        raise DataError(
            f"{where} has the grade '{printable(grade[:20])}'; write a whole number from 0 to 999, or nothing"
        )
    return _Row(
        place,
        images,
        contained(table.parent, label, table, absolute) if label else None,
        cells.get("subject", ""),
        int(grade) if grade else None,
    )


def _check(table: Path, rows: Sequence[_Row]) -> None:
    """Every file is there, once, and all scans have as many dimensions."""
    home: dict[Path, str] = {}
    for row in rows:
        files = row.images if row.label is None else (*row.images, row.label)
        absent = [path for path in files if not path.is_file()]
        if absent:
            everywhere = sum(not path.is_file() for other in rows for path in other.images)
            more = f" ({everywhere} scans of the table are absent)" if everywhere > 1 else ""
            raise DataError(
                f"{printable(table)} {row.place} names {few(absent)}, but no such file is there{more}; correct it"
            )
        for path in row.images:
            where = home.setdefault(path.resolve(), row.place)
            if where is not row.place:
                raise DataError(
                    f"{printable(table)} {where} and {row.place} both name {few([path])}; keep one row each"
                )
        if len(set(files)) < len(files):
            raise DataError(f"{printable(table)} {row.place} names one file twice; correct it")
    both = [row for row in rows if row.label and row.label.resolve() in home]
    if both:
        raise DataError(
            f"{printable(table)} {both[0].place} has a label that is also an image; correct it"
        )
    flat = [all(suffix(image) in SUFFIXES_2D for image in row.images) for row in rows]
    deep = [all(suffix(image) not in SUFFIXES_2D for image in row.images) for row in rows]
    if not all(flat) and not all(deep):
        raise DataError(f"{printable(table)} names volumes and pictures; make one table of each")


def _remarks(table: Path, rows: Sequence[_Row]) -> list[str]:
    notes = []
    listed = {path for row in rows for path in (*row.images, row.label) if path}
    folders = sorted({image.parent for row in rows for image in row.images})
    beside = {
        path
        for folder in folders
        for path in folder.iterdir()
        if suffix(path) and not path.name.startswith(".")
    }
    if unlisted := sorted(beside - listed):
        notes.append(
            f"{counted(len(unlisted), 'scan')} beside those of the table not listed: {few(unlisted)}"
        )
    for what, missing in (
        ("label", sum(row.label is None for row in rows)),
        ("grade", sum(row.grade is None for row in rows)),
        ("subject", sum(not row.subject for row in rows)),
    ):
        if 0 < missing < len(rows):
            notes.append(f"{missing} of {len(rows)} cases have no {what}")
    grades = {row.grade for row in rows if row.grade is not None}
    if len(grades) == 1 and len(rows) > 1:
        notes.append(f"all grades are {grades.pop()}: nothing to tell apart")
    return notes
