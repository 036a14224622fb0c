"""Predictions made elsewhere, such as nnU-Net's: the folder of each cell, and its test scans."""

from __future__ import annotations

import os
import string
from collections.abc import Collection, Mapping
from pathlib import Path

from selfvox.data.naming import natural_key, printable
from selfvox.errors import DataError, UsageError, did_you_mean
from selfvox.prediction.read_predictions import label_files
from selfvox.runs.atomic_files import sha256
from selfvox.studies.design import Cell
from selfvox.studies.plan import Plan

PLACEHOLDERS = ("labels", "percent", "seed", "fold")


def check_placeholders(plan: Plan, template: str) -> None:
    """Refuse a folder that is not that of one cell.

    Args:
        plan: the study's.
        template: path with placeholders such as {labels}.

    Raises:
        UsageError: a placeholder is unknown or missing.
    """
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError:
        raise UsageError(
            f"{template}: has a brace without its partner; write {{{{ and }}}} for plain ones"
        ) from None
    for name in names:
        if name not in PLACEHOLDERS:
            raise UsageError(f"{{{name}}}: no such placeholder{did_you_mean(name, PLACEHOLDERS)}")
    needed = {
        "labels": len(plan.labels or ()) > 1,
        "percent": len(plan.fractions or ()) > 1,
        "fold": plan.folds is not None,
    }
    missing = [name for name, is_needed in needed.items() if is_needed and name not in names]
    if missing:
        listed = " and ".join(f"{{{name}}}" for name in missing)
        raise UsageError(
            f"{template}: is one folder for cells that differ; write {listed} into the path"
        )


def folder_of(template: str, cell: Cell) -> Path:
    """The folder with the predictions of a cell."""
    percent = "" if cell.fraction is None else f"{100 * cell.fraction:g}"
    return Path(
        template.format(labels=cell.labels, percent=percent, seed=cell.seed, fold=cell.fold)
    )


def files_of_test_scans(folder: Path, cases: Collection[str]) -> dict[str, Path]:
    """The predictions of the test scans, by case id; others are left out.

    Raises:
        DataError: some are missing.
    """
    files = label_files(folder)
    missing = sorted(set(cases) - files.keys(), key=natural_key)
    if missing:
        raise DataError(
            f"{folder}: has no prediction of {len(missing)} of {len(cases)} test scans "
            f"({printable(missing[0])} first); name the files like the scans"
        )
    return {case: files[case] for case in sorted(cases, key=natural_key)}


def digest(files: Mapping[str, Path]) -> dict[str, str]:
    """The digest of each file, since predictions may be replaced by others."""
    return {case: sha256(path) for case, path in files.items()}


def link_files(files: Mapping[str, Path], folder: Path) -> None:
    """Link predictions into a folder of a study, which contains no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for path in files.values():
        os.symlink(path.resolve(), folder / path.name)
