"""Ways in: each module here knows one layout of scans, and the folder is the list of them.

`find` with "auto" asks each module, in alphabetical order and `folder` last, whether a place looks like its layout, and
reads it with the first that says yes. A module has `looks_like(root) -> bool`, which never raises, and
`read_dataset(root) -> Dataset`; one that takes a choice, as in `bids:T1w`, also `choose(dataset, choice) -> Dataset`. A name
with a leading underscore is not a source.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from selfvox.data import naming
from selfvox.data.naming import printable
from selfvox.errors import DataError, UsageError, did_you_mean


@dataclass(frozen=True)
class Case:
    """One scan: a file per channel, or one file that holds all channels."""

    id: str  # unique, safe as a file name
    subject: str
    images: tuple[Path, ...]
    label: Path | None = None
    grade: int | None = None
    stacked: bool = False  # the images are slices of one volume, not its channels
    allow_gap: bool = False  # of those slices some may be missing


@dataclass(frozen=True)
class Dataset:
    """The cases found in one place, in natural order of their ids."""

    root: Path
    source: str
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    classes: (
        dict[int, str] | None
    )  # value in the label -> name, background included; None: not declared
    notes: tuple[str, ...] = ()  # what was left out or assumed, one line each
    regions: Mapping[str, tuple[int, ...]] | None = (
        None  # sets of classes, which may overlap; None: not declared
    )


class _Source(Protocol):
    def looks_like(self, root: Path) -> bool: ...

    def read_dataset(self, root: Path) -> Dataset: ...

    def choose(self, dataset: Dataset, choice: str) -> Dataset: ...


def case_key(case: Case) -> naming.NaturalKey:
    """Key that sorts cases by id, `scan_2` before `scan_10`."""
    return naming.natural_key(case.id)


def source_names() -> list[str]:
    """The sources there are: the modules of this folder."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def find_dataset(root: Path, source: str = "auto") -> Dataset:
    """List the cases under `root`, a folder or a file, as `source` lays them out; `NAME:CHOICE` takes a part of them.

    Raises:
        UsageError: there is no such source, or no such choice.
        DataError: nothing is there, or it cannot be read that way; in one line.
    """
    source, colon, choice = source.partition(":")
    if source != "auto" and source not in source_names():
        raise UsageError(
            f"no source is called '{printable(source)}'{did_you_mean(source, ['auto', *source_names()])}"
        )
    root = Path(root)
    try:
        there = root.exists()
    except (OSError, ValueError):  # a name too long, a NUL in it
        there = False
    if not there:
        raise DataError(f"{printable(root)[:200]}: no such file or folder; is the path right?")
    if colon and not hasattr(_open(source) if source in source_names() else None, "choose"):
        raise UsageError(
            f"source: {printable(source)} takes no choice ':{printable(choice)}'; leave it out"
        )
    if source != "auto":
        found = _open(source).read_dataset(root)
        return _open(source).choose(found, choice) if colon else found
    in_order = sorted(source_names(), key=lambda name: (name == "folder", name))
    fitting = [name for name in in_order if _open(name).looks_like(root)]
    if not fitting:
        raise DataError(
            f"{printable(root)}: not a scan, a list of scans or a folder; known layouts: {', '.join(source_names())}"
        )
    dataset = _open(fitting[0]).read_dataset(root)
    others = [name for name in fitting[1:] if name != "folder"]
    note = f"read as {fitting[0]}; it also looks like {' and '.join(others)}: choose with --source"
    return replace(dataset, notes=(*dataset.notes, note)) if others else dataset


def _open(name: str) -> _Source:
    return cast(_Source, importlib.import_module(f"{__name__}.{name}"))
