"""Paths written in lists and tables, read without trust, and how many channels a picture holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Picture

from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.formats.safe_open import open_regular
from selfvox.data.naming import printable
from selfvox.errors import DataError

LARGEST_BYTES = 64 * 2**20
_GREY = ("1", "L", "LA", "F", "I")


def contained(folder: Path, text: str, said_by: Path, absolute: bool = False) -> Path:
    """The file that `text`, written in `said_by`, names: inside `folder`, links resolved, or absolute where allowed.

    Raises:
        DataError: it leads out of the folder or is no path at all.
    """
    what = f"{printable(said_by)} names '{printable(text[:120])}'"
    text = text.strip()
    if not text or "\0" in text or "\\" in text or not _encodable(text):
        raise DataError(f"{what}, which is not a path; write it with / between folders")
    path = folder / text
    try:
        resolved, inside = path.resolve(), folder.resolve()
        path.is_file()
    except (OSError, RuntimeError):  # a name too long, a loop of links
        raise DataError(f"{what}, which cannot be followed; correct it") from None
    if absolute and Path(text).is_absolute():
        return path
    if not resolved.is_relative_to(inside):
        remedy = "write it as an absolute path" if absolute else "move the file inside"
        raise DataError(f"{what}, which leads out of {printable(folder)}; {remedy}")
    return (
        folder / resolved.relative_to(inside)
        if ".." in path.parts or Path(text).is_absolute()
        else path
    )


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte order mark, however they end.

    Raises:
        DataError: not a regular file, too large, another encoding or NUL bytes.
    """
    with open_regular(path) as file:
        raw = file.read(LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        raise DataError(
            f"{printable(path)}: larger than {LARGEST_BYTES >> 20} MiB; a list of scans is smaller than that"
        )
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{printable(path)}: written as UTF-16; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(path)}: not UTF-8 text at byte {error.start}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(
            f"{printable(path)}: holds NUL bytes, so it is not a text file; save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def few(paths: Sequence[Path]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(printable(path.name) for path in paths[:3]) + more


def counted(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def unreadable(error: OSError) -> None:
    """For `os.walk`: a folder that cannot be listed is no empty one.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{printable(str(error.filename))}: cannot be listed ({error.strerror}); check its permissions"
    )


def channels_of(image: Path) -> tuple[str, ...]:
    """Names for the channels of one file: a colour picture has three; its header says so, a volume counts as one."""
    if suffix(image) not in SUFFIXES_2D:
        return ("image",)
    try:
        # opening reads the header only; the reader says what is wrong with the rest
        with open_regular(image) as file, warnings.catch_warnings(action="ignore"):
            mode = Picture.open(file).mode
    except (DataError, OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
        return ("image",)
    return ("image",) if mode.startswith(_GREY) else ("red", "green", "blue")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
