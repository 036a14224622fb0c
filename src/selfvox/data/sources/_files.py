"""What several sources need: untrusted paths and texts, folders to walk, and words for notes."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import first_of, printable
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.runs.safe_open import open_regular

LARGEST_BYTES = 64 * 2**20  # a million lines
_GREY_MODES = ("1", "L", "LA", "F", "I")


def resolve_inside(folder: Path, text: str, listed_in: Path, absolute: bool = False) -> Path:
    """The file that a list or table names, which must be inside `folder`, links resolved.

    Args:
        folder: of the list.
        text: the path as written there.
        listed_in: the list, for messages.
        absolute: allow absolute paths to anywhere.

    Raises:
        DataError: it leads out of the folder or is no path at all.
    """
    quote = f"{printable(listed_in)} names '{printable(text[:120])}'"
    text = text.strip()
    if not text or "\0" in text or "\\" in text or not _encodable(text):
        raise DataError(f"{quote}, which is not a path; write it with / between folders")
    path = folder / text
    try:
        resolved = path.resolve()
        resolved_folder = folder.resolve()
        # for its errors alone
        path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, a loop of links
        raise DataError(f"{quote}, which cannot be followed; correct it") from None
    if absolute and Path(text).is_absolute():
        return path
    if not resolved.is_relative_to(resolved_folder):
        remedy = "write it as an absolute path" if absolute else "move the file inside"
        if ".." not in path.parts and not Path(text).is_absolute():
            # the path itself stays inside: a link on the way leads out
            remedy = f"it is a link: {remedy}, or put a copy in its place"
        raise DataError(f"{quote}, which leads out of {printable(folder)}; {remedy}")
    if ".." in path.parts or Path(text).is_absolute():
        return folder / resolved.relative_to(resolved_folder)
    return existing_spelling(path)


def existing_spelling(path: Path) -> Path:
    """The path, or the file that is called the same with letters composed or taken apart.

    macOS takes an umlaut apart into two characters (NFD), other systems write one (NFC).
    """
    if path.exists():
        return path
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if other.exists():
            return other
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte order mark, however they end.

    Raises:
        DataError: not a regular file, too large, another encoding or NUL bytes.
    """
    with open_regular(path) as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise DataError(
            f"{printable(path)}: larger than {LARGEST_BYTES >> 20} MiB; "
            "a list of scans is smaller than that"
        )
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{printable(path)}: written as UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(path)}: not UTF-8 text at byte {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(
            f"{printable(path)}: contains NUL bytes, so it is not a text file; save it as UTF-8"
        )
    # not splitlines, which also splits at form feeds and separators of Unicode
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def walk_visible(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with its visible files, in order; links to folders are not followed."""
    for folder, subfolders, files in os.walk(root, onerror=onerror):
        # in place: os.walk goes on with what is left, in this order
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield Path(folder), sorted(name for name in files if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was put there by the archiver of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def raise_unlistable(error: OSError) -> None:
    """For `os.walk`: a folder that cannot be listed is no empty one.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{printable(str(error.filename))}: cannot be listed ({error.strerror}); "
        "check its permissions"
    )


def name_scans(scans: Sequence[Path], root: Path) -> tuple[list[str], list[str]]:
    """The case id and the subject of each scan, by the rules of `naming`."""
    paths = naming.relative_paths(scans, root)
    endings = [suffix(scan) for scan in scans]
    return naming.case_ids(paths, endings), naming.subject_names(paths, endings)


def channels_of(image: Path) -> tuple[str, ...]:
    """Names for the channels of one file: three for a colour picture, else one.

    A picture's header says so; a volume counts as one.
    """
    if suffix(image) not in SUFFIXES_2D:
        return ("image",)
    try:
        # opening reads the header only; a damaged picture gets its message when it is read whole
        with open_regular(image) as file, warnings.catch_warnings(action="ignore"):
            mode = Pillow.open(file).mode
    except (DataError, OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return ("image",)
    return ("image",) if mode.startswith(_GREY_MODES) else ("red", "green", "blue")


def numbered_names(names: Any) -> tuple[str, ...] | None:
    """The names in `{"0": name, "1": name, ...}` in order; None for anything else, or nothing."""
    if not isinstance(names, dict) or not names:
        return None
    if set(names) != {str(number) for number in range(len(names))}:
        return None
    if not all(isinstance(name, str) for name in names.values()):
        return None
    return tuple(names[str(number)] for number in range(len(names)))


def unlabelled_note(cases: Sequence[Case]) -> list[str]:
    """How many cases have no label, if any."""
    unlabelled = sum(case.label is None for case in cases)
    return [f"{unlabelled} of {len(cases)} cases have no label"] if unlabelled else []


def first_names(paths: Sequence[Path]) -> str:
    """The first three names, and how many more."""
    return first_of([path.name for path in paths])


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
