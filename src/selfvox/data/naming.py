"""Names of cases and subjects, taken from paths: safe as file names, unique, in natural order.

The rules, in the order in which they apply:

- A case is called by its file's stem. Where two files share a stem, both are called by their whole
  path, joined by `_`.
- A subject is the `sub-XX` in the path (BIDS), where there is one.
- Else, where the stem names only the kind of scan (`t1.nii.gz`) or occurs in several folders, the
  folders name the subject (`ann/t1.nii.gz` -> `ann`). Folders for a session, a modality, a side or
  a subset of the data (`ses-1`, `anat`, `left`, `train`, `imagesTr`) count only without any other.
- Else the subject is the stem without endings for session, visit, run, modality and side:
  `ann_ses-2_T1w`, `ann_visit2` and `ann_left` -> `ann`.
- Subjects that differ only in upper and lower case are one, written as the first of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from selfvox.data.name_words import KIND
from selfvox.errors import DataError, percent_encoded
from selfvox.errors import printable as printable

_KIND = rf"{KIND}|image|img|scan|volume|vol|data|raw"
_TIME = (
    r"(?:ses|session|visit|run|timepoint|tp)[-_]?\d+|"
    r"(?:ses|run|acq|rec|echo|dir|task|desc|space)-[a-z0-9]+"
)
_SIDE = r"left|right|od|os"  # two eyes of one person
_ENDING = re.compile(rf"[-_.](?:{_KIND}|{_TIME}|{_SIDE})$", re.IGNORECASE)
_ONLY_KIND = re.compile(rf"(?:{_KIND}|{_TIME})", re.IGNORECASE)
_NO_SUBJECT = re.compile(
    rf"(?:{_KIND}|{_TIME}|{_SIDE}|anat|func|fmap|perf|nii|nifti|"
    r"train|training|val|valid|validation|test|testing|"
    r"images|imagestr|imagests|imagesval|imgs|scans|volumes)",
    re.IGNORECASE,
)
_BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(?:_|$)")
_MAX_BYTES = 150  # of a name, so that it and an ending fit the 255 bytes of file systems
# separators and reserved characters of any file system; what it does with `.`, `-` and spaces at
# the ends of a name
_NOT_PLAIN = re.compile(r'[%/\\:*?"<>|]|^[.\-\s]|(?<=\.)\.|[.\s]$')

NaturalKey = tuple[list[tuple[int, int, str]], str]


def natural_key(text: str) -> NaturalKey:
    """Key that sorts `scan_2` before `scan_10`."""
    # 18 digits at a time: Python refuses to convert thousands of them
    pieces = re.findall(r"\d{1,18}|\D+|\d", text, re.ASCII)
    return [_natural_piece(piece) for piece in pieces], text


def safe_name(text: str) -> str:
    """`text` as a file name that cannot leave its folder: what is not plain becomes `%XX`.

    Plain is any printable character, space included, but not the separators and reserved ones of
    any file system, nor a leading `.` or `-`, a second `.` in a row, or a space or `.` at the end.
    Different texts have different names.
    """
    escaped = printable(_NOT_PLAIN.sub(lambda match: percent_encoded(match[0]), text))
    encoded = escaped.encode("utf-8")
    if len(encoded) > _MAX_BYTES:
        start = encoded[:_MAX_BYTES].decode("utf-8", "ignore")
        start = start.rsplit("%", 1)[0]  # no half of a `%XX` at the end
        # long names that begin alike stay apart
        return f"{start}~{hashlib.sha256(encoded).hexdigest()[:12]}"
    return escaped or "%"


def case_ids(paths: Sequence[PurePath], endings: Sequence[str]) -> list[str]:
    """A unique name for each path.

    Names that differ only in upper and lower case count as the same, as on some file systems.

    Args:
        paths: relative to the data set's root.
        endings: of the paths, `.nii.gz` whole.

    Raises:
        DataError: two paths differ only in upper and lower case.
    """
    stems = [stem(path, ending) for path, ending in zip(paths, endings, strict=True)]
    names = [safe_name(name) for name in stems]
    with_folders = [
        safe_name("_".join([*path.parent.parts, name]))
        for path, name in zip(paths, stems, strict=True)
    ]
    whole_paths = [safe_name(path.as_posix()) for path in paths]
    # one step after the other, so that names get no longer than needed
    for longer_names in (with_folders, whole_paths):
        repeated = _repeated(names)
        names = [
            longer if name.casefold() in repeated else name
            for name, longer in zip(names, longer_names, strict=True)
        ]
    repeated = _repeated(names)
    if repeated:
        named = zip(paths, names, strict=True)
        first, second, *_ = [printable(path) for path, name in named if name.casefold() in repeated]
        raise DataError(f"{first} and {second} differ only in upper and lower case; rename one")
    return names


def subject_names(paths: Sequence[PurePath], endings: Sequence[str]) -> list[str]:
    """The subject of each path (relative to the data set's root), by the rules above."""
    stems = [stem(path, ending) for path, ending in zip(paths, endings, strict=True)]
    folders = [_subject_folders(path) for path in paths]
    folders_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, parents in zip(stems, folders, strict=True):
        folders_of[name.casefold()].add(parents)
    subjects = []
    spelling: dict[str, str] = {}
    for path, name, parents in zip(paths, stems, folders, strict=True):
        in_several_folders = len(folders_of[name.casefold()]) > 1
        subject = safe_name(_subject(path, name, parents, in_several_folders))
        # on some file systems two spellings are one file
        subjects.append(spelling.setdefault(subject.casefold(), subject))
    return subjects


def relative_paths(paths: Sequence[Path], root: Path) -> list[PurePath]:
    """Each path from `root`, or from the folder that all share where one is outside `root`."""
    if not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
        paths = [Path(os.path.abspath(path)) for path in paths]
    return [PurePath(path.relative_to(root)) for path in paths]


def stem(path: PurePath, ending: str) -> str:
    """The file's name without its ending, which may have two dots."""
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def _natural_piece(piece: str) -> tuple[int, int, str]:
    """Numbers before words, by their value; words without regard to case."""
    if piece[0] in "0123456789":
        return (0, int(piece), "")
    return (1, 0, piece.casefold())


def _subject_folders(path: PurePath) -> tuple[str, ...]:
    """The folders of a path that may name a subject."""
    return tuple(folder for folder in path.parent.parts if not _NO_SUBJECT.fullmatch(folder))


def _subject(path: PurePath, name: str, folders: tuple[str, ...], in_several_folders: bool) -> str:
    """The subject of the file with the stem `name`; `folders` are those that may name a subject."""
    for text in (*path.parent.parts, name):
        bids = _BIDS.match(text)
        if bids:
            return bids[1]
    if _ONLY_KIND.fullmatch(name):
        from_folders = "_".join(folders or path.parent.parts)
    elif in_several_folders:
        from_folders = "_".join(folders)
    else:
        from_folders = ""
    return from_folders or _without_endings(name)


def _without_endings(name: str) -> str:
    while True:
        # one ending at a time: a name may have several
        shorter = _ENDING.sub("", name)
        if shorter in (name, ""):
            return name
        name = shorter


def _repeated(names: Sequence[str]) -> set[str]:
    """The names that occur more than once, in lower case."""
    counts = Counter(name.casefold() for name in names)
    return {name for name, count in counts.items() if count > 1}
