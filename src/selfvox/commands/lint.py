"""The verb `lint`: what is wrong with a data set, or differs from the rest, before any training."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.checks.check_all import check_inspections
from selfvox.data.checks.findings import SEVERITIES, Finding
from selfvox.data.checks.inspect_scan import Inspection, InspectJob, inspect_case
from selfvox.data.naming import count_of, natural_key, printable
from selfvox.data.preparation import parallel
from selfvox.data.preparation.fit_recipe import NoUsableScanError, fit_recipe
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import find_scans
from selfvox.data.preparation.prepare_case import (
    Rejected,
    main_file,
    make_rejected,
    with_absolute_paths,
)
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.reports.scan_sheet import write_sheets
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import Lint

FINDINGS = "findings.csv"
SCANS = "scans.csv"
_MOST_PRINTED = 30  # label values
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def lint(settings: Lint) -> list[dict[str, Any]]:
    """Read every scan and label, and print what is wrong or unusual; returns it as rows.

    Raises:
        DataError: there are no scans, or at least one finding is an error.
        UsageError: an option does not fit the scans.
    """
    if is_store(settings.scans):
        raise UsageError(f"{settings.scans}: is a store; name the folder of the scans")
    dataset = _find(settings)
    inspections: list[Inspection] = []
    try:
        recipe = fit_recipe(dataset, settings)
        inspections, rejected = _inspect(dataset, recipe, settings)
        channel_names = recipe.channel_names
    except NoUsableScanError as error:
        rejected = list(error.rejected)
        channel_names = dataset.channel_names
    findings = check_inspections(dataset, inspections, rejected, channel_names)
    _print_labels(dataset, inspections)
    _print_findings(findings)
    if settings.out is not None:
        _write(settings.out, dataset, inspections, findings, channel_names)
    counts = Counter(finding.severity for finding in findings)
    summary = ", ".join(count_of(counts[severity], severity) for severity in SEVERITIES)
    usable = count_of(len(inspections), "scan")
    echo(f"{usable} can be used, {len(rejected)} cannot; {summary}")
    if settings.out is None:
        echo("pictures of all scans, and tables: add --out lint/")
    if counts["error"]:
        raise DataError(
            f"{settings.scans}: {count_of(counts['error'], 'error')} in these scans; mend them, or "
            "leave the scans out"
        )
    return [dataclasses.asdict(finding) for finding in findings]


def _find(settings: Lint) -> Dataset:
    """The data set, if there is one; `out` must not be among its scans."""
    if settings.out is None:
        dataset = find_dataset(settings.scans, settings.source)
    else:
        dataset = find_scans(settings.scans, settings.out, settings)
    if not dataset.cases:
        raise DataError(f"{dataset.root}: contains no scans; name the folder of the scans")
    return dataset


def _inspect(
    dataset: Dataset, recipe: Recipe, settings: Lint
) -> tuple[list[Inspection], list[Rejected]]:
    """Look at every case, in several processes."""
    classes = None if dataset.classes is None else tuple(sorted(dataset.classes))
    jobs = [
        InspectJob(with_absolute_paths(case), recipe, classes, settings.out is not None)
        for case in dataset.cases
    ]
    inspections: list[Inspection] = []
    rejected: list[Rejected] = []
    with progress_bar("looking", len(jobs)) as bar:
        for number, result in parallel.run(
            inspect_case, jobs, settings.workers, settings.scheduler
        ):
            if isinstance(result, parallel.WorkerDiedError):
                reason = "the process that read it died, most likely of too little memory"
                result = make_rejected(jobs[number].case, reason)
            if isinstance(result, Inspection):
                inspections.append(result)
            else:
                rejected.append(result)
            bar.advance(f"{len(rejected)} unusable" if rejected else "")
    inspections.sort(key=lambda inspection: natural_key(inspection.facts.id))
    return inspections, sorted(rejected, key=lambda scan: natural_key(scan.id))


def _print_findings(findings: Sequence[Finding]) -> None:
    table = Table(box=SIMPLE)
    for heading in ("", "about", "finding", "scans"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        # Text: rich would take a name in brackets for a style
        table.add_row(
            Text(finding.severity, style=_STYLES[finding.severity]),
            Text(finding.check),
            Text(printable(finding.text)),
            Text(finding.scans_text),
        )
    Console(highlight=False).print(table)


def _print_labels(dataset: Dataset, inspections: Sequence[Inspection]) -> None:
    """Print in how many labels each value is, and of how many voxels."""
    voxels: dict[int, list[int]] = defaultdict(list)
    for inspection in inspections:
        for value, count in inspection.label_voxels.items():
            voxels[value].append(count)
    if not voxels:
        return
    table = Table(title="label values", title_justify="left", box=SIMPLE)
    for heading in ("value", "name", "labels", "least", "median", "most voxels"):
        table.add_column(heading, justify="left" if heading == "name" else "right")
    for value, counts in sorted(voxels.items())[:_MOST_PRINTED]:
        name = (dataset.classes or {}).get(value, "")
        numbers = (value, name, len(counts), min(counts), round(np.median(counts)), max(counts))
        table.add_row(*(Text(printable(str(cell))) for cell in numbers))
    Console(highlight=False).print(table)
    if len(voxels) > _MOST_PRINTED:
        echo(f"and {len(voxels) - _MOST_PRINTED} more values")


def _write(
    out: Path,
    dataset: Dataset,
    inspections: Sequence[Inspection],
    findings: Sequence[Finding],
    channel_names: Sequence[str],
) -> None:
    """Write both tables and the sheets."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(
        out / FINDINGS,
        ("severity", "about", "finding", "scans"),
        [(item.severity, item.check, item.text, " ".join(item.scans)) for item in findings],
    )
    checks: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.severity != "note":
            for scan in finding.scans:
                checks[scan].append(finding.check)
    cases = {case.id: case for case in dataset.cases}
    rows = [
        _row(item, cases[item.facts.id], checks[item.facts.id], channel_names)
        for item in inspections
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(out / SCANS, columns, [[row.get(name) for name in columns] for row in rows])
    pictures = {item.facts.id: item.views for item in inspections if item.views is not None}
    captions = {
        scan: ": ".join([printable(scan), ", ".join(dict.fromkeys(checks[scan]))]).rstrip(": ")
        for scan in pictures
    }
    marked = {scan for scan in pictures if checks[scan]}
    sheets = write_sheets(out, pictures, captions, marked)
    echo(f"tables: {out / FINDINGS}, {out / SCANS}")
    if sheets:
        more = f" to {sheets[-1].name}" if len(sheets) > 1 else ""
        echo(f"look at every scan: {sheets[0]}{more}; red frames have a warning or an error")


def _row(
    inspection: Inspection, case: Case, checks: Sequence[str], channel_names: Sequence[str]
) -> Mapping[str, Any]:
    """One scan in the table."""
    facts = inspection.facts
    profile = facts.profile
    row: dict[str, Any] = {
        "id": facts.id,
        "subject": facts.subject,
        "file": main_file(case),
        "shape": _product(facts.geometry.shape),
        "spacing_mm": _product(profile.spacing_mm),
        "orientation": facts.orientation,
        "extent": _product(profile.extent),
        "modality": profile.modality,
    }
    for name, channel in zip(channel_names, profile.channels, strict=True):
        prefix = f"{name} " if len(channel_names) > 1 else ""
        row[f"{prefix}lowest"] = channel.before[0]
        row[f"{prefix}median"] = channel.before[2]
        row[f"{prefix}highest"] = channel.before[-1]
        row[f"{prefix}body"] = channel.share
    row["label voxels"] = " ".join(
        f"{value}:{count}" for value, count in inspection.label_voxels.items()
    )
    row["findings"] = ", ".join(dict.fromkeys(checks))
    return row


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
