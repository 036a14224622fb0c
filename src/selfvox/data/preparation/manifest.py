"""The manifest of a store: its recipe and classes, and the checksum of the table of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from selfvox.data.preparation.case_columns import FILE, KINDS, CaseColumns
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.ops import regions
from selfvox.ops.regions import Regions
from selfvox.runs import atomic_files
from selfvox.runs.typed_json import parse, read_checked, write_checked

FORMAT = "selfvox-store"
VERSION = 2


@dataclass(frozen=True)
class _Cases:
    """What the manifest says of the table of the cases."""

    count: Annotated[int, Field(ge=1, lt=2**31)]
    sha256: str


def is_store(path: Path) -> bool:
    """Whether the folder looks like a store, finished or not."""
    return (path / "manifest.json").is_file() and (path / "cases").is_dir()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as plain values; its `cases` is None while the store is being built.

    Raises:
        DataError: no store, not JSON, or of another version.
    """
    if not is_store(path):
        raise DataError(f"{path}: not a store; make one with `selfvox prepare SCANS --out {path}`")
    try:
        manifest = read_checked(path / "manifest.json")
    except DataError as error:
        raise damaged(path, str(error)) from None
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path / 'manifest.json'}: not the manifest of a store; prepare the scans into "
            "another folder"
        )
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path}: store of version {manifest.get('version')}, but this selfvox reads version "
            f"{VERSION}; prepare the scans again, into another folder"
        )
    if missing := {"asked", "recipe", "classes", "cases"} - manifest.keys():
        raise damaged(path, f"has no '{min(missing)}'")
    for name in ("asked", "recipe"):
        if not isinstance(manifest[name], dict):
            raise damaged(path, f"'{name}' is no mapping")
    return manifest


class DamagedManifestError(DataError):
    """A manifest that is not as it was written; `prepare` can make it again."""


def damaged(path: Path, reason: str) -> DamagedManifestError:
    """The error of a damaged manifest."""
    file = path / "manifest.json"
    reason = reason.removeprefix(f"{file}: ").removeprefix("damaged ").strip("()")
    return DamagedManifestError(f"{file}: damaged ({reason}); run the same `selfvox prepare` again")


def write_manifest(
    path: Path,
    recipe: Recipe,
    classes: Mapping[int, str] | None,
    cases: Sequence[StoredCase] | None,
    request: Mapping[str, Any],
    declared_regions: Regions | None = None,
) -> None:
    """Write the manifest and, with its cases, their table; their files are on the disk first.

    Args:
        path: of the store.
        recipe: of its cases.
        classes: names by number; None if there are no labels.
        cases: None while the store is being built.
        request: what the recipe was chosen from; another request needs another recipe.
        declared_regions: sets of classes that the data set declares.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "asked": dict(request),
        "recipe": recipe.to_dict(),
        "classes": None
        if classes is None
        else {str(number): name for number, name in classes.items()},
        "regions": regions.regions_to_json(declared_regions),
        "cases": None,
    }
    if cases is not None:
        # once for all of their files
        for folder in ("cases", *KINDS):
            if (path / folder).is_dir():
                atomic_files.fsync_folder(path / folder)
        # before the manifest, which says that it is complete
        digest = CaseColumns.of(cases).write(path / FILE)
        content["cases"] = {"count": len(cases), "sha256": digest}
    write_checked(path / "manifest.json", content)


def read_columns(path: Path, manifest: Mapping[str, Any], axes: int) -> CaseColumns | None:
    """Map the table of the cases; None while the store is being built.

    Args:
        path: of the store.
        manifest: from `read_manifest`.
        axes: of each case.

    Raises:
        DataError: the table is missing, or not the one that was written with the manifest.
    """
    if manifest["cases"] is None:
        return None
    try:
        cases = parse(_Cases, manifest["cases"], "cases")
    except DataError as error:
        raise damaged(path, str(error)) from None
    file = path / FILE
    if atomic_files.sha256(file) != cases.sha256:
        raise DamagedManifestError(
            f"{file}: damaged (its checksum is not that of the manifest); run the same `selfvox "
            "prepare` again"
        )
    return CaseColumns.read(file, cases.count, axes)
