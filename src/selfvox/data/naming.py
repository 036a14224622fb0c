"""Names of cases and subjects, taken from paths: safe as file names, unique, in natural order.

The rules, in the order in which they apply:

- A case is called by its file's stem. Where two files share a stem, both are called by their whole path, joined by `_`.
- A subject is the `sub-XX` in the path (BIDS), where there is one.
- Else, where the stem says only the kind of scan (`t1.nii.gz`) or stands in several folders, the folders name the
  subject (`ann/t1.nii.gz` -> `ann`); folders for a session, a modality, a side or a part of the data (`ses-1`, `anat`,
  `left`, `train`, `imagesTr`) count only where there is no other.
- Else the subject is the stem without endings for session, visit, run, modality and side: `ann_ses-2_T1w`, `ann_visit2`
  and `ann_left` -> `ann`.
- Subjects that differ only in upper and lower case are one, written as the first of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from selfvox.errors import DataError

_KIND = (
    r"t1|t1w|t1n|t1c|t1ce|t1gd|t1km|t2|t2w|t2f|flair|dwi|adc|swi|bold|pd|pdw|mr|mri|ct|cta|pet|suv|us|"
    r"image|img|scan|volume|vol|data|raw"
)
_TIME = r"(?:ses|session|visit|run|timepoint|tp)[-_]?\d+|(?:ses|run|acq|rec|echo|dir|task|desc|space)-[a-z0-9]+"
_SIDE = r"left|right|od|os"  # two eyes of one person
_ENDING = re.compile(rf"[-_.](?:{_KIND}|{_TIME}|{_SIDE})$", re.IGNORECASE)
_ONLY_KIND = re.compile(rf"(?:{_KIND}|{_TIME})", re.IGNORECASE)
_NO_SUBJECT = re.compile(
    rf"(?:{_KIND}|{_TIME}|{_SIDE}|anat|func|fmap|perf|nii|nifti|train|training|val|valid|validation|test|testing|"
    r"images|imagestr|imagests|imagesval|imgs|scans|volumes)",
    re.IGNORECASE,
)
_BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(?:_|$)")
_LONGEST_BYTES = 150  # of a name, so that it and an ending fit the 255 bytes of file systems


NaturalKey = tuple[list[tuple[int, int, str]], str]


def natural_key(text: str) -> NaturalKey:
    """Key that sorts `scan_2` before `scan_10`."""
    parts = re.findall(r"\d{1,18}|\D+|\d", text, re.ASCII)
    return [
        (0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts
    ], text


def safe_name(text: str) -> str:
    """`text` as a file name that cannot leave its folder: what is not plain becomes `%XX`; the rest stays.

    Plain is any printable character, space included, but not the separators and reserved ones of any file system, nor
    a leading `.` or `-`, a second `.` in a row, or a space or `.` at the end. Different texts have different names.
    """
    escaped = re.sub(r'[%/\\:*?"<>|]|^[.\-\s]|(?<=\.)\.|[.\s]$', _percent, text)
    escaped = "".join(c if c.isprintable() else _percent(c) for c in escaped)
    size = escaped.encode("utf-8")
    if len(size) > _LONGEST_BYTES:
        short = size[:_LONGEST_BYTES].decode("utf-8", "ignore").rsplit("%", 1)[0]
        return f"{short}~{hashlib.sha256(size).hexdigest()[:12]}"
    return escaped or "%"


def printable(path: PurePath | str) -> str:
    """A path for a message: control characters escaped, so that it stays one line."""
    return "".join(c if c.isprintable() else _percent(c) for c in str(path))


def case_ids(paths: Sequence[PurePath], endings: Sequence[str]) -> list[str]:
    """A unique name for each path (relative to the data set's root); `endings` are their suffixes, `.nii.gz` whole.

    Names that differ only in upper and lower case count as the same: some file systems cannot tell them apart.

    Raises:
        DataError: two paths differ only in upper and lower case.
    """
    names = [safe_name(stem(path, ending)) for path, ending in zip(paths, endings, strict=True)]
    longer = [
        safe_name("_".join([*path.parent.parts, stem(path, end)]))
        for path, end in zip(paths, endings, strict=True)
    ]
    for better in (longer, [safe_name(path.as_posix()) for path in paths]):
        again = _repeated(names)
        names = [
            new if old.casefold() in again else old for old, new in zip(names, better, strict=True)
        ]
    if again := _repeated(names):
        twice = [
            printable(path)
            for path, name in zip(paths, names, strict=True)
            if name.casefold() in again
        ]
        raise DataError(
            f"{twice[0]} and {twice[1]} differ only in upper and lower case; rename one"
        )
    return names


def subject_names(paths: Sequence[PurePath], endings: Sequence[str]) -> list[str]:
    """The subject of each path (relative to the data set's root), by the rules above."""
    stems = [stem(path, ending) for path, ending in zip(paths, endings, strict=True)]
    folders = [
        tuple(part for part in path.parent.parts if not _NO_SUBJECT.fullmatch(part))
        for path in paths
    ]
    homes: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, folder in zip(stems, folders, strict=True):
        homes[name.casefold()].add(folder)
    found = []
    spelled: dict[str, str] = {}
    for path, name, folder in zip(paths, stems, folders, strict=True):
        bids = [match[1] for part in (*path.parent.parts, name) if (match := _BIDS.match(part))]
        says_nothing = _ONLY_KIND.fullmatch(name) is not None
        from_folder = "_".join((folder or path.parent.parts) if says_nothing else folder)
        repeated = says_nothing or len(homes[name.casefold()]) > 1
        subject = safe_name(
            bids[0] if bids else (repeated and from_folder) or _without_endings(name)
        )
        found.append(spelled.setdefault(subject.casefold(), subject))
    return found


def relative(paths: Sequence[Path], root: Path) -> list[PurePath]:
    """Each path from `root`, or, where one lies outside, from the folder that they share."""
    if not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
        paths = [Path(os.path.abspath(path)) for path in paths]
    return [PurePath(path.relative_to(root)) for path in paths]


def stem(path: PurePath, ending: str) -> str:
    """The file's name without its ending, which may have two dots."""
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def _without_endings(name: str) -> str:
    while (shorter := _ENDING.sub("", name)) not in (name, ""):
        name = shorter
    return name


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, times in Counter(name.casefold() for name in names).items() if times > 1}


def _percent(found: re.Match[str] | str) -> str:
    code = ord(found if isinstance(found, str) else found[0])
    return f"%{code:02X}" if code < 0x100 else f"%u{code:04X}"
