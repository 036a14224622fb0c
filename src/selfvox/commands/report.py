"""The verb `report`: a page for the browser of runs, predictions, embeddings and studies."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

from selfvox.errors import BusyError, UsageError
from selfvox.evaluation.embedding_files import VECTORS
from selfvox.prediction.output_folder import CARD
from selfvox.reports.bundle import Bundle, new_report
from selfvox.reports.embedding_page import embedding_page
from selfvox.reports.finetune_page import finetune_page
from selfvox.reports.page import Page, write_pages
from selfvox.reports.predictions_page import predictions_page
from selfvox.reports.pretrain_page import pretrain_page
from selfvox.reports.run_facts import is_running
from selfvox.reports.study_page import is_study, study_page
from selfvox.runs.fold_folder import name_networks
from selfvox.runs.folder_lock import folder_lock
from selfvox.runs.progress import echo, quiet_console
from selfvox.runs.run_folder import read_metrics, read_run_record
from selfvox.settings.verbs import Report

EVERY_SECONDS = 60  # between two pages of a run that trains; the page reloads as often
BUDGET_MB = 10  # of a single file
SINGLE_FILE_STEPS = (2, 3, 4)  # every how many voxels are shown, until the budget is kept


def report(settings: Report) -> Path:
    """Make a page of each folder; several have a page that lists them.

    Returns:
        The page to open.

    Raises:
        UsageError: a folder is none that selfvox made, or `out` is something else than a report.
        DataError: there are no predictions.
    """
    # of a folder of folds, each fold is a run
    folders = name_networks(list(settings.folders))
    for folder in folders:
        _check_separate(folder, settings.out)
    if settings.watch:
        _wait_for_metrics(folders)
    trains = _any_trains(folders)
    index = _make(folders, settings)
    while settings.watch and trains:
        time.sleep(EVERY_SECONDS)
        # asked before the page is made, so that the last page is of a run that has ended
        trains = _any_trains(folders)
        with quiet_console():
            _make(folders, settings)
    return index


def _wait_for_metrics(folders: Sequence[Path]) -> None:
    """Wait until each run that trains has its first metrics."""
    is_announced = False
    while fresh := [folder for folder in folders if _trains(folder) and not read_metrics(folder)]:
        if not is_announced:
            echo(f"{fresh[0]}: has no metrics yet; the page is made when it has")
        is_announced = True
        time.sleep(EVERY_SECONDS)


def _make(folders: Sequence[Path], settings: Report) -> Path:
    """Make the report of all folders; returns its first page."""
    index = settings.out / "index.html"
    for step in SINGLE_FILE_STEPS if settings.single_file else (1,):
        _make_once(folders, settings, step)
        megabytes = _size(settings.out) / 1e6
        if megabytes <= BUDGET_MB:
            break
    echo(f"report: {index} ({megabytes:.2g} MB); open it in a browser, no network is needed")
    if settings.single_file and megabytes > BUDGET_MB:
        echo(
            f"{index}: browsers are slow to open more than {BUDGET_MB} MB; leave --single-file "
            "out, or predict fewer scans into a folder of their own"
        )
    return index


def _make_once(folders: Sequence[Path], settings: Report, step: int) -> None:
    """Write the report, with every `step`-th voxel of volumes."""
    with new_report(settings.out, settings.single_file, step) as bundle:
        pages = [
            _page(f"page-{place}", folder, settings, bundle)
            for place, folder in enumerate(folders, start=1)
        ]
        write_pages(pages, bundle, importlib.metadata.version("selfvox"))


def _size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _any_trains(folders: Sequence[Path]) -> bool:
    return any(_trains(folder) for folder in folders)


def _trains(folder: Path) -> bool:
    """Whether a process trains a run; a killed one has left it, whatever its record says."""
    if not is_running(folder):
        return False
    try:
        with folder_lock(folder):
            return False
    except BusyError:
        return True


def _page(name: str, folder: Path, settings: Report, bundle: Bundle) -> Page:
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder; name a run, predictions, embeddings or a study"
        )
    if (folder / CARD).is_file():
        return predictions_page(name, folder, settings, bundle)
    verb = read_run_record(folder).get("verb")
    if verb == "pretrain":
        return pretrain_page(name, folder, bundle)
    if verb == "finetune":
        return finetune_page(name, folder)
    if is_study(folder):
        return study_page(name, folder, bundle)
    if (folder / VECTORS).is_file():
        return embedding_page(name, folder, bundle)
    raise UsageError(
        f"{folder}: is no run, no study, no predictions and no embeddings of selfvox; name the "
        "folder that was --out of pretrain, finetune, predict, embed or study"
    )


def _check_separate(folder: Path, out: Path) -> None:
    """Refuse a report that would replace what it is about, or become part of it.

    Raises:
        UsageError: one folder contains the other.
    """
    inside = out.resolve()
    outside = folder.resolve()
    if inside == outside or outside.is_relative_to(inside):
        raise UsageError(f"{out}: contains what the report is about; name another --out")
