"""Sources: each module here reads one layout of scans, and the folder is the list of them.

A source has `looks_like(root) -> bool`, which never raises, and `read_dataset(root) -> Dataset`.
One that takes a choice, as in `bids:T1w`, also has `read_choice(root, choice) -> Dataset`. A module
with a leading underscore is not a source. An installed package adds a source by an entry point of
the group `selfvox.sources` that names the module:

    [project.entry-points."selfvox.sources"]
    NAME = "package.module"

With `auto`, `find_dataset` asks each source whether a path looks like its layout and reads it with
the first that agrees: the modules here in alphabetical order, then those of packages, `folder`
last.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from selfvox import plugins
from selfvox.data import naming
from selfvox.data.naming import printable
from selfvox.errors import DataError, UsageError, did_you_mean
from selfvox.runs.progress import echo


@dataclass(frozen=True)
class Case:
    """One scan: a file per channel, or one file with all channels."""

    id: str  # unique, safe as a file name
    subject: str
    images: tuple[Path, ...]
    label: Path | None = None
    grade: int | None = None
    target: float | None = None  # a number to predict, such as an age
    stacked: bool = False  # the images are slices of one volume, not its channels
    allow_gap: bool = False  # slices may be missing
    # of the first image, from the folder that was named; of a DICOM series the id. `find_dataset`
    # fills it in
    file: str = ""
    listed: bool = False  # a person's list or table says that it is a scan, whatever its voxels
    modality: str | None = None  # as DICOM names it, such as MR, where the data set says so
    # edges of a voxel along the axes of the nearest RAS+ grid, where listing the scans showed it
    spacing_mm: tuple[float, ...] | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label, a grade or a target."""
        return any(truth is not None for truth in (self.label, self.grade, self.target))


@dataclass(frozen=True)
class Dataset:
    """The cases of one data set, in natural order of their ids."""

    root: Path
    source: str
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    # value in the label -> name, background included; None: not declared
    classes: dict[int, str] | None
    notes: tuple[str, ...] = ()  # what was left out or assumed, one line each
    # sets of classes, which may overlap; None: not declared
    regions: Mapping[str, tuple[int, ...]] | None = None
    warnings: tuple[str, ...] = ()  # those of the notes that are probably about a mistake
    guesses_subjects: bool = False  # from the names of files and folders, since nothing else says


class ChoiceNeeded(DataError):  # noqa: N818 - a question rather than an error
    """Only a person can say which files are meant; the message says how."""


class Source(Protocol):
    """A module that reads one layout of scans, which the first line of its docstring describes."""

    __doc__: str | None

    def looks_like(self, root: Path) -> bool:
        """Whether `root` has this layout; never raises."""

    def read_dataset(self, root: Path) -> Dataset:
        """List the cases; raises a `DataError` of one line where that is impossible."""


@runtime_checkable
class SourceWithChoice(Source, Protocol):
    """A source that also takes a choice, as in `bids:T1w`."""

    def read_choice(self, root: Path, choice: str) -> Dataset:
        """The data set as `choice` restricts or changes it; `UsageError` for an unknown choice."""


def case_key(case: Case) -> naming.NaturalKey:
    """Key that sorts cases by id, `scan_2` before `scan_10`."""
    return naming.natural_key(case.id)


def source_names() -> list[str]:
    """The names of all sources, built in and installed; imports none of them."""
    installed = {plugin.name for plugin in plugins.installed_plugins(plugins.SOURCES)}
    return sorted(installed.union(_built_in_names()))


def open_source(name: str) -> Source:
    """Import the source called `name`; a built-in one wins over one of an installed package.

    Raises:
        UsageError: there is none, two packages claim it, or the package's module is no source.
    """
    built_in = _built_in_names()
    try:
        plugin = plugins.find_plugin(plugins.SOURCES, name, built_in)
        if plugin is not None:
            return _source_of(plugin)
    except UsageError as error:
        raise UsageError(f"source: {error}") from None
    if name not in built_in:
        nearest = did_you_mean(name, ["auto", *source_names()])
        raise UsageError(f"source: unknown source '{printable(name)}'{nearest}")
    return cast(Source, importlib.import_module(f"{__name__}.{name}"))


def find_dataset(root: Path, source: str = "auto") -> Dataset:
    """List the cases under `root`, a folder or a file, in the layout `source`.

    `NAME:CHOICE` passes a choice to the source, such as one kind of scan (`bids:T1w`).

    Raises:
        UsageError: there is no such source, or no such choice.
        DataError: `root` is absent, or cannot be read in this layout; in one line.
    """
    dataset = _read_dataset(root, source)
    # the names of DICOM files may be a patient's
    plain = [case for case in dataset.cases if not case.stacked]
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    files = naming.relative_paths([case.images[0] for case in plain], folder) if plain else []
    by_id = {case.id: printable(file) for case, file in zip(plain, files, strict=True)}
    cases = tuple(replace(case, file=by_id.get(case.id, case.id)) for case in dataset.cases)
    return replace(dataset, cases=cases)


def _read_dataset(root: Path, source: str) -> Dataset:
    """As `find_dataset`, without the files of the cases."""
    name, colon, choice = source.partition(":")
    # a misspelt source is reported even where the path is wrong too
    opened = None if name == "auto" else open_source(name)
    root = Path(root)
    if not _exists(root):
        raise DataError(f"{printable(root)[:200]}: no such file or folder; is the path right?")
    if colon and not isinstance(opened, SourceWithChoice):
        raise UsageError(
            f"source: {printable(name)} takes no choice ':{printable(choice)}'; leave it out"
        )
    if opened is None:
        return _read_first_match(root)
    if colon and isinstance(opened, SourceWithChoice):
        return opened.read_choice(root, choice)
    return opened.read_dataset(root)


def _read_first_match(root: Path) -> Dataset:
    """Read with the first source that recognises `root`; a note names the others that do."""
    built_in = _built_in_names()
    # built-in layouts first, so that installing a package never changes how known data are read
    in_order = sorted(
        source_names(), key=lambda name: (name == "folder", name not in built_in, name)
    )
    matches = [name for name in in_order if _recognises(name, root)]
    if not matches:
        layouts = ", ".join(source_names())
        raise DataError(
            f"{printable(root)}: not a scan, a list of scans or a folder; known layouts: {layouts}"
        )
    # only the first: reading with several could mix layouts
    dataset = open_source(matches[0]).read_dataset(root)
    # any folder looks like a plain folder, so that this match means nothing
    alternatives = [name for name in matches[1:] if name != "folder"]
    if not alternatives:
        return dataset
    note = (
        f"read as {matches[0]}; it also looks like {' and '.join(alternatives)}: "
        "choose with --source"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _exists(root: Path) -> bool:
    try:
        return root.exists()
    except (OSError, ValueError):  # a name that is too long, or that contains NUL
        return False


def _built_in_names() -> list[str]:
    # lists the files without importing them: help must stay fast
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def _recognises(name: str, root: Path) -> bool:
    """Whether the source `name` recognises `root`; a plug-in that fails to say is left out."""
    source = open_source(name)
    if name in _built_in_names():  # these never raise; if one does, it is our mistake to see
        return source.looks_like(root)
    try:
        return source.looks_like(root)
    except Exception as error:  # code of others: any exception may leave it
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        module = getattr(source, "__name__", name)
        echo(
            f"source: '{name}' ({module}) failed to look at {printable(root)} ({reason}) and is "
            "left out; update or uninstall its package, or choose another with --source"
        )
        return False


def _source_of(plugin: plugins.Plugin) -> Source:
    """The module that a plug-in offers, if it is a source.

    Raises:
        UsageError: it cannot be imported, or lacks a function.
    """
    module = plugin.load()
    for function in ("looks_like", "read_dataset"):
        if not callable(getattr(module, function, None)):
            raise UsageError(
                f"'{plugin.name}' of the package {plugin.package} has no function {function}; "
                "update or uninstall that package"
            )
    return cast(Source, module)
