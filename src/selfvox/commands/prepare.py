"""The verb `prepare`: a data set becomes a store with a fixed split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from selfvox.data.checks.check_all import check_store
from selfvox.data.preparation import split
from selfvox.data.preparation.build_store import build_share, build_store
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import find_scans
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import subject_grades
from selfvox.errors import UsageError
from selfvox.ops import regions
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Prepare, parse_shard

_PRINTED = 3  # findings


def prepare(settings: Prepare) -> Path:
    """Prepare a data set into a store, or bring the store up to date; returns the store's folder.

    Raises:
        DataError: there is nothing to prepare, or not one scan can be used.
        UsageError: an option does not fit the data, or another process writes to the store.
    """
    if is_store(settings.scans):
        raise UsageError(f"{settings.scans}: is a store already; name the folder of the scans")
    dataset = find_scans(settings.scans, settings.out, settings)
    if settings.regions is not None:
        dataset = dataclasses.replace(dataset, regions=regions.parse_regions(settings.regions))
    if settings.shard is not None:
        number, count = parse_shard(settings.shard)
        build_share(dataset, settings.out, settings, number, count)
        return settings.out
    store = build_store(dataset, settings.out, settings, check=settings.check)
    _write_split(store, settings)
    _print_worst(store, settings.scans)
    return settings.out


def _print_worst(store: Store, scans: Path) -> None:
    """Print what is most likely wrong with the scans; duplicates of several subjects were named."""
    findings = [
        finding
        for finding in check_store(store)
        if finding.severity != "note" and finding.check != "duplicates"
    ]
    for finding in findings[:_PRINTED]:
        about = f"{finding.scans_text}: " if finding.scans else ""
        echo(f"{finding.severity}: {about}{finding.text}")
    if findings:
        more = f"{len(findings) - _PRINTED} more findings" if len(findings) > _PRINTED else "more"
        echo(f"{more}, and pictures of all scans: selfvox lint {scans} --out lint/")


def _write_split(store: Store, settings: Prepare) -> None:
    """Decide who trains, validates and tests; subjects that are new since then train.

    An existing split stays, unless other numbers or another seed are requested.
    """
    current = store.split()
    is_requested = bool(settings.test or settings.validation)
    if current is None and not is_requested:
        return
    if current is not None and is_requested and not _is_as_requested(current, settings):
        echo(f"{store.path}: makes a new split, since other numbers or another seed are requested")
        current = None
    if current is None:
        current = _make_split(store, settings)
    subjects = {case.subject for case in store.cases}
    new = subjects - {*current.train, *current.validation, *current.test}
    current = dataclasses.replace(current, train=(*current.train, *sorted(new)))
    split.write_split(current, store.path / "split.json")
    echo(
        f"{len(current.train)} subjects to train on, {len(current.validation)} to validate, "
        f"{len(current.test)} to test"
    )


def _is_as_requested(existing: Split, settings: Prepare) -> bool:
    numbers = (len(existing.test), len(existing.validation), existing.seed)
    return numbers == (settings.test, settings.validation, settings.seed)


def _make_split(store: Store, settings: Prepare) -> Split:
    """A new split of the subjects that can be scored: with labels, else with grades, else all."""
    grades = subject_grades(store.cases)
    subjects = {case.subject for case in store.cases if case.has_label}
    if not subjects:
        targets = {case.subject for case in store.cases if case.target is not None}
        subjects = set(grades) or targets or {case.subject for case in store.cases}
    # sorted: the split follows from the seed, not from the order of the files
    return split.make_split(
        sorted(subjects), settings.test, settings.validation, settings.seed, grades
    )
