"""The files of a report: pages, data for the viewer and pictures; or all of them in one page."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_json, write_text

MARKER = "report.json"  # by which a folder is recognised as a report
FORMAT = 1


class Bundle:
    """What a report consists of, while it is written.

    A page that is opened from a disk may load scripts but no other files. So data for the viewer
    are scripts that hand over text in base64, or such text inside of the page.

    Args:
        folder: of the report; exists.
        single_file: whether all data are put into the page.
        step: every how many voxels of a volume are shown, at least.
    """

    def __init__(self, folder: Path, single_file: bool, step: int = 1):
        self.folder = folder
        self.single_file = single_file
        self.step = step
        self.data: dict[str, str] = {}  # by name, of a single file

    def add_data(self, name: str, content: bytes) -> str:
        """Add bytes that a page reads as `selfvox.data.load(name)`; returns the name.

        Args:
            name: folders and a file, such as `1/003/label`; letters, digits, `-` and `/`.
            content: of a file.
        """
        text = base64.b64encode(content).decode("ascii")
        if self.single_file:
            self.data[name] = text
            return name
        path = self.folder / "data" / f"{name}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f'selfvox.data.receive("{name}", "{text}");\n')
        return name

    def add_picture(self, name: str, content: bytes, kind: str = "jpeg") -> str:
        """Add a picture; returns the address that a page shows it by.

        Args:
            name: without ending.
            content: of the file.
            kind: as its media type names it.
        """
        if self.single_file:
            address = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            return address
        path = self.folder / "pictures" / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"pictures/{name}.{kind}"


@contextlib.contextmanager
def new_report(out: Path, single_file: bool, step: int = 1) -> Iterator[Bundle]:
    """A report that appears at `out` as a whole, in place of an earlier one; or not at all.

    The arguments are those of `Bundle`.

    Raises:
        UsageError: there is something else at `out`.
    """
    if out.exists() and not is_report(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is no report; name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    name = out.resolve().name
    new = out.parent / f".{os.getpid()}.part.{name}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield Bundle(new, single_file, step)
        write_json(new / MARKER, {"format": FORMAT})
        old = out.parent / f".{os.getpid()}.old.{name}"
        if out.exists():
            out.rename(old)
        new.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def is_report(folder: Path) -> bool:
    """Whether a folder was made by `report`."""
    return (folder / MARKER).is_file()
