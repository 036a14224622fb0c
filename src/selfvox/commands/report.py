"""The verb `report`: a page for the browser, to look at runs, predictions and studies."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.prediction.output_folder import CARD
from selfvox.reports.bundle import Bundle, new_report
from selfvox.reports.page import Page, write_pages
from selfvox.reports.predictions_page import predictions_page
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Report


def report(settings: Report) -> Path:
    """Make a page of each folder; several have a page that lists them.

    Returns:
        The page to open.

    Raises:
        UsageError: a folder is none that selfvox made, or `out` is something else than a report.
        DataError: there are no predictions.
    """
    for folder in settings.folders:
        _check_separate(folder, settings.out)
    with new_report(settings.out, settings.single_file) as bundle:
        pages = [
            _page(f"page-{place}", folder, settings, bundle)
            for place, folder in enumerate(settings.folders, start=1)
        ]
        write_pages(pages, bundle, importlib.metadata.version("selfvox"))
    index = settings.out / "index.html"
    megabytes = sum(file.stat().st_size for file in settings.out.rglob("*") if file.is_file()) / 1e6
    echo(f"report: {index} ({megabytes:.2g} MB); open it in a browser, no network is needed")
    return index


def _page(name: str, folder: Path, settings: Report, bundle: Bundle) -> Page:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a run, predictions or a study")
    if (folder / CARD).is_file():
        return predictions_page(name, folder, settings, bundle)
    raise UsageError(
        f"{folder}: is no run, no study and no predictions of selfvox; name the folder that was "
        "--out of pretrain, finetune, predict or study"
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
