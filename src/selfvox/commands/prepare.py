"""The verb `prepare`: a data set becomes a store with a fixed split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from selfvox.data.preparation import split, store
from selfvox.data.preparation.build_store import _build, _found
from selfvox.data.preparation.store import Store, is_store
from selfvox.errors import UsageError
from selfvox.ops import regions
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Prepare


def prepare(settings: Prepare) -> Path:
    """Prepare a data set into a store, or bring the store up to date; returns the store's folder.

    Raises:
        DataError: there is nothing to prepare, or not one scan can be used.
        UsageError: an option does not fit the data, or another process is at work on the store.
    """
    if is_store(settings.scans):
        raise UsageError(f"{settings.scans}: is a store already; name the folder of the scans")
    dataset = _found(settings.scans, settings.out, settings)
    if settings.regions is not None:
        dataset = dataclasses.replace(dataset, regions=regions.parse_regions(settings.regions))
    built = _build(dataset, settings.out, settings, None)
    _write_split(built, settings)
    return settings.out


def _write_split(built: Store, settings: Prepare) -> None:
    """Decide who trains, validates and tests; a split that is there stays, unless other numbers are asked for."""
    subjects = {case.subject for case in built.cases}
    # only labelled subjects can be scored
    graded = store.grades(built.cases)
    eligible = {case.subject for case in built.cases if case.has_label} or set(graded) or subjects
    there = built.split()
    if there is None or (
        (settings.test or settings.validation)
        and (
            (len(there.test), len(there.validation), there.seed)
            != (settings.test, settings.validation, settings.seed)
        )
    ):
        if not settings.test and not settings.validation:
            return
        if there is not None:
            echo(
                f"{built.path}: makes a new split, since other numbers or another seed are asked for"
            )
        there = split.make_split(
            sorted(eligible), settings.test, settings.validation, settings.seed, graded
        )
    new = subjects - {*there.train, *there.validation, *there.test}
    whole = dataclasses.replace(there, train=(*there.train, *sorted(new)))
    split.write_split(whole, built.path / "split.json")
    echo(
        f"{len(whole.train)} subjects to train on, {len(whole.validation)} to validate, {len(whole.test)} to test"
    )
