"""Names of cases and subjects, taken from paths: safe as file names, unique, in natural order.

The rules, in the order in which they apply:

- A case is called by its file's stem. Where two files share a stem, or it names only the kind of
  scan (`ann/t1.nii.gz`), they are called by their whole path, joined by `_`.
- A subject is the `sub-XX` in the path (BIDS), where there is one.
- Else the outermost folder with a number in its name that the stem contains as a whole: the folder
  is the person's, and its files are frames, slices or kinds of scan (`p07/p07_frame01.nii.gz` and
  `p07/p07_12.png` -> `p07`).
- Else, where the stem names only the kind of scan or its folder has a file of the same name as
  another folder, the folders name the subject (`ann/t1.nii.gz` -> `ann`). Folders for a session, a
  date, a modality, a side or a subset of the data (`ses-1`, `2006-05-02`, `anat`, `left`, `train`,
  `imagesTr`) count only without any other. A stem that numbers people within a site or a class is
  part of the name (`siteA/001.nii.gz` -> `siteA_001`), one that numbers slices in a person's folder
  is not (`p07/001.png` -> `p07`). Folders for a year or a numbered scan (`2012`, `scan_a`) do not
  count below a person's: `p07/2012/t1.png` -> `p07`.
- Else the subject is the stem without endings for session, visit, run, time, date, frame, slice,
  modality, phase, plane, view and side: `ann_ses-2_T1w`, `ann_20060502`, `ann_frame01`,
  `ann_portal` and `ann_left` -> `ann`.
- Endings that number people as often as scans (`_z012`, `_m06`, `_v1`, `_scan1`, `_img_3`) are left
  out only after a person's number: `p07_scan1` -> `p07`, `siteA_scan1` stays. They are kept where
  all files would become one subject, which is the data set rather than a person.
- A plain number at the end is kept: `case01_00012` may be a slice or a person. `subjects` asks.
- Subjects that differ only in upper and lower case are one, written as the first of them.

Wherever names leave it open, more scans are one subject rather than fewer: a split that separates
scans of one person scores what it trained on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from selfvox.data.name_words import (
    COUNTED,
    COUNTED_ENDING,
    COUNTED_FOLDER,
    DATED,
    ENDING,
    GROUP,
    NO_SUBJECT,
    NUMBERED,
    Role,
    words_of,
)
from selfvox.errors import DataError, percent_encoded
from selfvox.errors import printable as printable

_BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(?:_|$)")
_MAX_BYTES = 150  # of a name, so that it and an ending fit the 255 bytes of file systems
_NAMED = 3  # of many names in a message
_HASH_DIGITS = 12  # that keep long names apart
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
        return f"{start}~{hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]}"
    return escaped or "%"


def count_of(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_of(names: Sequence[str]) -> str:
    """The first names, printable, and how many more there are."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(printable(name) for name in names[:_NAMED]) + rest


def is_safe_name(name: str) -> bool:
    """Whether `safe_name` could have made this name: it has no separator and leads nowhere."""
    plain = name.replace("%", "_")
    most_bytes = _MAX_BYTES + 1 + _HASH_DIGITS
    is_plain = name.isprintable() and not _NOT_PLAIN.search(plain)
    return bool(name) and is_plain and len(name.encode("utf-8")) <= most_bytes


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
    with_folders = [
        safe_name("_".join([*path.parent.parts, name]))
        for path, name in zip(paths, stems, strict=True)
    ]
    whole_paths = [safe_name(path.as_posix()) for path in paths]
    # `ann_t1` also before there is a second patient, so that predictions keep their names
    names = [
        longer if _names_only_kind(name) else safe_name(name)
        for name, longer in zip(stems, with_folders, strict=True)
    ]
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
    subjects = _subject_names(paths, endings, without_counts=True)
    # what all names share is the data set's
    return subjects if len(set(subjects)) > 1 else _subject_names(paths, endings)


def numbered_name(subject: str) -> tuple[str, bool] | None:
    """What is before the number at the end of a name that may be a person's, or None.

    Whether a word such as `scan` or `v` precedes the number is the second value: if none does, the
    beginning needs a number of its own (`case01_00012`), since `benign_12` is of a class.
    """
    match = NUMBERED.fullmatch(subject)
    if match is None or _says_only_kind(match[1]):
        return None
    is_counted = re.fullmatch(COUNTED, match[2] or "", re.IGNORECASE) is not None
    return (match[1], is_counted) if is_counted or names_person(match[1]) else None


def names_person(folder: str) -> bool:
    """Whether a folder may be one person's, by its name: it has a number and is of no group."""
    has_number = any(character.isdecimal() for character in folder)
    return has_number and not GROUP.fullmatch(folder) and not NO_SUBJECT.fullmatch(folder)


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


def _subject_names(
    paths: Sequence[PurePath], endings: Sequence[str], without_counts: bool = False
) -> list[str]:
    """As `subject_names`.

    Args:
        paths: relative to the data set's root.
        endings: of the paths.
        without_counts: whether a numbered scan of a person's is the person's.
    """
    stems = [stem(path, ending) for path, ending in zip(paths, endings, strict=True)]
    folders = [_subject_folders(path, without_counts) for path in paths]
    own_folders = [_own_folder(path, name) for path, name in zip(paths, stems, strict=True)]
    # one folder that all names repeat is the data set's
    are_peoples = len({folder for folder in own_folders if folder}) > 1
    alike = _folders_with_like_names(stems, folders)
    subjects = []
    spelling: dict[str, str] = {}
    for path, name, parents, own_folder in zip(paths, stems, folders, own_folders, strict=True):
        if own_folder and are_peoples and not _bids_subject(path):
            subject = own_folder
        else:
            shorter = _without_counts(name) if without_counts else name
            subject = _subject(path, shorter, parents, parents in alike)
        subject = safe_name(subject)
        # on some file systems two spellings are one file
        subjects.append(spelling.setdefault(subject.casefold(), subject))
    return subjects


def _subject_folders(path: PurePath, without_counts: bool) -> tuple[str, ...]:
    """The folders of a path that may name a subject; one with a date only without any other.

    Args:
        path: of a file.
        without_counts: leave out a year and a numbered scan in a person's folder.
    """
    folders = tuple(
        folder
        for folder in path.parent.parts
        if not (NO_SUBJECT.fullmatch(folder) or _says_only_kind(folder))
    )
    folders = tuple(folder for folder in folders if not DATED.search(folder)) or folders
    others = tuple(folder for folder in folders if not COUNTED_FOLDER.fullmatch(folder))
    return others if without_counts and any(map(names_person, others)) else folders


def _folders_with_like_names(
    stems: Sequence[str], folders: Sequence[tuple[str, ...]]
) -> set[tuple[str, ...]]:
    """The folders that share the name of a file with another folder."""
    folders_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, parents in zip(stems, folders, strict=True):
        folders_of[name.casefold()].add(parents)
    return {folder for parents in folders_of.values() if len(parents) > 1 for folder in parents}


def _says_only_kind(name: str) -> bool:
    """Whether the words of a name say what kind of scans or which subset they are, nothing else."""
    return all(word.role is not Role.OTHER for word in words_of(name))


def _names_only_kind(name: str) -> bool:
    """Whether the stem of a file names no person, but the kind or the time of a scan."""
    return _says_only_kind(name) or bool(NO_SUBJECT.fullmatch(name))


def _own_folder(path: PurePath, name: str) -> str:
    """The outermost folder that a stem contains as a whole and that may be a person's, or ""."""
    for folder in path.parent.parts:
        if names_person(folder) and _contains(name.casefold(), folder.casefold()):
            return folder
    return ""


def _contains(text: str, part: str) -> bool:
    """Whether a text contains another one that no letter or digit continues."""
    start = text.find(part)
    while start >= 0:
        before = text[start - 1 : start]
        after = text[start + len(part) : start + len(part) + 1]
        if not before.isalnum() and not after.isalnum():
            return True
        start = text.find(part, start + 1)
    return False


def _bids_subject(path: PurePath) -> str:
    for text in path.parts:
        bids = _BIDS.match(text)
        if bids:
            return bids[1]
    return ""


def _subject(path: PurePath, name: str, folders: tuple[str, ...], alike: bool) -> str:
    """The subject of the file with the stem `name`.

    Args:
        path: of the file.
        name: its stem.
        folders: those that may name a subject.
        alike: other folders have files of the same names as this one.
    """
    bids = _bids_subject(PurePath(*path.parent.parts, name))
    if bids:
        return bids
    if _names_only_kind(name):
        return "_".join(folders or path.parent.parts) or _without_endings(name)
    person = _without_endings(name)
    if not alike or not folders:
        return person
    numbers_people = any(character.isdecimal() for character in person)
    if numbers_people and not names_person(folders[-1]):
        return "_".join((*folders, person))
    return "_".join(folders)


def _without_endings(name: str) -> str:
    while True:
        # one ending at a time: a name may have several
        shorter = ENDING.sub("", name)
        if shorter in (name, ""):
            return name
        name = shorter


def _without_counts(name: str) -> str:
    """The name without endings such as `_scan1`, if a person's number remains."""
    while True:
        # the others may come before and after: `p07_scan1_T1w`
        shorter = COUNTED_ENDING.sub("", _without_endings(name))
        if shorter == name or not names_person(shorter):
            return name
        name = shorter


def _repeated(names: Sequence[str]) -> set[str]:
    """The names that occur more than once, in lower case."""
    counts = Counter(name.casefold() for name in names)
    return {name for name, count in counts.items() if count > 1}
