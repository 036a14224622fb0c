"""From a data set to a store: fit the recipe, prepare what changed, report what was rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data.preparation import parallel, store
from selfvox.data.preparation.case_columns import FILE, KINDS, STAMPS_FILE
from selfvox.data.preparation.choose_recipe import choose_recipe
from selfvox.data.preparation.fit_recipe import NoUsableScanError
from selfvox.data.preparation.manifest import (
    DamagedManifestError,
    is_store,
    read_manifest,
    write_manifest,
)
from selfvox.data.preparation.prepare_case import (
    CaseJob,
    PreparedCase,
    Rejected,
    make_rejected,
    prepare_case,
    request_hash,
    with_absolute_paths,
)
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.report import (
    no_usable_scan,
    report,
    report_undeclared_classes,
    write_rejected,
)
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.store_changes import check_vanished, rename_split_subjects
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.preparation.unchanged_cases import find_unchanged_cases, read_entries
from selfvox.data.sources import Case, Dataset
from selfvox.data.subjects import identity_notes, subject_notes
from selfvox.errors import DataError, UsageError
from selfvox.ops import regions
from selfvox.runs import atomic_files
from selfvox.runs.folder_lock import LOCK, OWNER, folder_lock
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

_FOLDERS = ("cases", *KINDS)
_FILES = ("manifest.json", FILE, STAMPS_FILE, "rejected.csv", "split.json", LOCK, OWNER)


def build_store(
    dataset: Dataset,
    out: Path,
    settings: PreparationSettings,
    recipe: Recipe | None = None,
    grid: Recipe | None = None,
    check: bool = False,
) -> Store:
    """Prepare a data set into the store `out`, or bring that store up to date.

    Args:
        dataset: the scans.
        out: folder of the store.
        settings: how to prepare.
        recipe: of an encoder, which the scans must follow; default: chosen from the scans.
        grid: of an encoder with other channels; the scans get its size or spacing.
        check: read all arrays and compare their SHA-256, also where size and time are unchanged.

    Raises:
        DataError: there are no scans, or not one can be used.
        UsageError: `out` contains something else.
        BusyError: another process writes to the store.
    """
    # before the work, so that a wrong layout is noticed early
    notes = (*dataset.notes, *subject_notes(dataset), *identity_notes(dataset.cases))
    for note in notes:
        echo(note)
    if not dataset.cases:
        raise DataError(f"{dataset.root}: contains no scans; name the folder of the scans")
    if out.exists() and not is_store(out):
        names = {file.name for file in out.iterdir()}
        if names - {*_FOLDERS, *_FILES}:
            raise UsageError(f"{out}: contains files that are not of a store; name another --out")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        for folder in ("", *_FOLDERS):
            atomic_files.remove_temporary_files(out / folder)
        return _update_store(dataset, out, settings, recipe, grid, check)


def build_share(
    dataset: Dataset, out: Path, settings: PreparationSettings, number: int, count: int
) -> None:
    """Prepare one of several shares of a data set, without a lock: other processes do the others.

    Cases and their arrays are written; `build_store` then finds them, and writes the manifest. All
    processes fit the same recipe.

    Args:
        dataset: all scans.
        out: folder of the store.
        settings: how to prepare.
        number: of the share, from 0 on.
        count: of shares.

    Raises:
        DataError: no scan can be read.
    """
    (out / "cases").mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(out)
    recipe, request = choose_recipe(dataset, settings, None, manifest)
    if manifest is None:
        # the same from every process; without its cases the store counts as unfinished
        write_manifest(out, recipe, dataset.classes, None, request, dataset.regions)
    recipe_hash = store.recipe_digest(recipe, dataset.classes)
    share = dataclasses.replace(dataset, cases=dataset.cases[number::count])
    entries = read_entries(out, [case.id for case in share.cases], manifest)
    intact = find_unchanged_cases(share.cases, out, entries.by_id, recipe_hash, check=False)
    new = [case for case in share.cases if case.id not in intact]
    rejected = 0
    for result in _run_jobs(_make_jobs(new, dataset, out, recipe, recipe_hash), settings):
        rejected += isinstance(result, Rejected)
    echo(
        f"shard {number}/{count}: {len(new) - rejected} scans prepared now, {len(intact)} "
        f"before, {rejected} rejected; once all shards are done, run the same command without "
        "--shard"
    )


def _update_store(
    dataset: Dataset,
    out: Path,
    settings: PreparationSettings,
    required: Recipe | None,
    grid: Recipe | None,
    check: bool,
) -> Store:
    """Prepare what is new or changed, remove what is gone; the store is locked by the caller."""
    # under the lock: another process may just have changed it
    manifest = _read_manifest(out)
    stored_ids = {file.stem for file in (out / "cases").glob("*.json")}
    removed_ids = stored_ids - {case.id for case in dataset.cases}
    # otherwise a mistyped path would empty a finished store
    if stored_ids and removed_ids == stored_ids:
        raise UsageError(
            f"{out}: is a store of other scans, none of which is in {dataset.root}; "
            "name another --out"
        )
    stored = read_entries(out, stored_ids, manifest)
    entries = stored.by_id
    check_vanished(dataset, out, stored_ids, entries)
    try:
        recipe, request = choose_recipe(dataset, settings, required, manifest, grid)
    except NoUsableScanError as error:
        write_rejected(out, error.rejected)
        raise no_usable_scan(dataset, out, error.rejected) from None
    # a case of another recipe counts as changed and is prepared again
    recipe_hash = store.recipe_digest(recipe, dataset.classes)

    rename_split_subjects(dataset, out, removed_ids, entries)
    intact = find_unchanged_cases(dataset.cases, out, entries, recipe_hash, check)
    new = [case for case in dataset.cases if case.id not in intact]
    jobs = _make_jobs(new, dataset, out, recipe, recipe_hash)
    is_changed = bool(jobs or removed_ids) or manifest is None
    if is_changed:
        # without its cases the store counts as unfinished, if this process is killed from here on
        write_manifest(out, recipe, dataset.classes, None, request, dataset.regions)
    for case_id in removed_ids:
        store.remove_case(out, case_id)
    prepared: list[PreparedCase] = []
    rejected: list[Rejected] = []
    for result in _run_jobs(jobs, settings):
        if isinstance(result, PreparedCase):
            prepared.append(result)
        else:
            rejected.append(result)
            store.remove_case(out, result.id)
    write_rejected(out, rejected)
    cases = [*intact.values(), *(result.case for result in prepared)]
    if not cases:
        raise no_usable_scan(dataset, out, rejected)

    if dataset.classes is None:
        report_undeclared_classes(dataset.root, cases)
    classes = dataset.classes or _classes_of_labels(cases)
    if dataset.regions and classes:
        regions.check_regions(dataset.regions, classes)
        regions.check_region_names(dataset.regions, classes)
    is_listed = stored.is_listed and all(entries.get(case.id) is case for case in cases)
    if is_changed or not is_listed or not _has_same_regions(manifest, dataset):
        write_manifest(out, recipe, classes, cases, request, dataset.regions)
    report(out, cases, sum(result.is_new for result in prepared), rejected)
    return open_store(out)


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of the store; None where there is none, or a damaged one, to be made again."""
    if not is_store(out):
        return None
    try:
        return read_manifest(out)
    except DamagedManifestError as error:
        echo(f"{str(error).partition(';')[0]}; it is made again")
        return None


def _make_jobs(
    cases: Sequence[Case], dataset: Dataset, out: Path, recipe: Recipe, recipe_hash: str
) -> list[CaseJob]:
    values = None if dataset.classes is None else tuple(sorted(dataset.classes))
    return [
        CaseJob(
            store=out.absolute(),
            case=with_absolute_paths(case),
            recipe=recipe,
            classes=values,
            recipe_hash=request_hash(case, recipe_hash),
        )
        for case in cases
    ]


def _run_jobs(
    jobs: Sequence[CaseJob], settings: PreparationSettings
) -> Iterator[PreparedCase | Rejected]:
    """The results of all jobs, in the order in which they finish."""
    rejected = 0
    with progress_bar("preparing", len(jobs)) as bar:
        for number, result in parallel.run(
            prepare_case, jobs, settings.workers, settings.scheduler
        ):
            if isinstance(result, parallel.WorkerDiedError):
                reason = (
                    "the process that read it died, most likely because of too little memory; "
                    "use fewer --workers"
                )
                result = make_rejected(jobs[number].case, reason)
            rejected += isinstance(result, Rejected)
            bar.advance(f"{rejected} rejected" if rejected else "")
            yield result


def _classes_of_labels(cases: Sequence[StoredCase]) -> dict[int, str] | None:
    """Classes by the values of the labels, for a data set that names none; None without labels."""
    if not any(case.has_label for case in cases):
        return None
    # 0 is the background of every data set, also where no voxel has it
    values = sorted({value for case in cases for value in case.label_values} | {0})
    return {value: f"class {value}" if value else "background" for value in values}


def _has_same_regions(manifest: Mapping[str, Any] | None, dataset: Dataset) -> bool:
    """Whether the manifest has the regions of the data set."""
    declared = regions.regions_to_json(dataset.regions)
    return manifest is not None and manifest.get("regions") == declared
