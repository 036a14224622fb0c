"""From a data set to a store: fit the recipe, prepare what changed, report what was rejected."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data import naming
from selfvox.data.preparation import parallel, split, store
from selfvox.data.preparation.case_columns import FILE, KINDS, STAMPS_FILE
from selfvox.data.preparation.choose_recipe import check_options, choose_recipe
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
    image_hash,
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
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.preparation.unchanged_cases import find_unchanged_cases, read_entries
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.data.subjects import subject_notes
from selfvox.errors import DataError, UsageError
from selfvox.ops import regions
from selfvox.runs import atomic_files
from selfvox.runs.folder_lock import LOCK, OWNER, folder_lock
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

_MOST_VANISHED = 0.5  # of the scans or labels of a store, when it is prepared again
_FOLDERS = ("cases", *KINDS)
_FILES = ("manifest.json", FILE, STAMPS_FILE, "rejected.csv", "split.json", LOCK, OWNER)


def open_or_build_store(
    scans: Path,
    out: Path,
    settings: PreparationSettings,
    recipe: Recipe | None = None,
    need_labels: bool = False,
    first: int | None = None,
    dataset: Dataset | None = None,
    grid: Recipe | None = None,
) -> Store:
    """Open `scans` if it is a store; otherwise build a store of them in `out`.

    Args:
        scans: a store, or anything that `find_dataset` finds cases in.
        out: where a store is built.
        settings: how to prepare.
        recipe: of an encoder, which the scans must follow; default: chosen from the scans.
        need_labels: prepare the scans with a label, or else a grade, alone; refuse a data set
            without any.
        first: prepare only so many cases, for a preview; default: all.
        dataset: the scans, if they are listed already; default: they are listed here.
        grid: of an encoder with other channels; the scans get its size or spacing.

    Raises:
        DataError: the store follows another recipe, no scan can be used, or there are no labels.
        UsageError: an option contradicts the recipe of the store or of the encoder.
    """
    if recipe is not None:
        check_options(settings, recipe, "the encoder's scans were", "pre-train with it too")
    if is_store(scans):
        ready = open_store(scans)
        if grid is not None:
            recipe = ready.recipe.with_grid_of(grid)
        if recipe is not None and not ready.recipe.is_equivalent(recipe):
            raise DataError(
                f"{scans}: was prepared in another way than the encoder's scans; name the scans, "
                "not the store"
            )
        check_options(settings, ready.recipe, f"{scans} was", "name the scans")
    else:
        dataset = find_scans(scans, out, settings, dataset)
        if need_labels:
            dataset = _labelled_scans(dataset)
        dataset = dataclasses.replace(dataset, cases=dataset.cases[:first])
        ready = build_store(dataset, out, settings, recipe, grid)
    if need_labels and not any(case.is_labelled for case in ready.cases):
        raise DataError(
            f"{scans}: has neither labels nor grades; name a data set with labels, or a table with "
            "a grade or a target"
        )
    return ready


def _labelled_scans(dataset: Dataset) -> Dataset:
    """The scans with a label, or else those with a grade, or else those with a target; else all.

    Without any, the caller refuses them.
    """
    labelled = [case for case in dataset.cases if case.label is not None]
    graded = [case for case in dataset.cases if case.grade is not None]
    cases = labelled or graded or [case for case in dataset.cases if case.target is not None]
    others = len(dataset.cases) - len(cases)
    if not cases or not others:
        return dataset
    echo(f"{others} of {len(dataset.cases)} scans have no label and are not prepared")
    return dataclasses.replace(dataset, cases=tuple(cases))


def count_channels(scans: Path, source: str) -> int:
    """Number of channels of scans, or of the scans in a store."""
    if is_store(scans):
        return len(open_store(scans).recipe.channel_names)
    return len(find_dataset(scans, source).channel_names)


def find_scans(
    scans: Path, out: Path, settings: PreparationSettings, dataset: Dataset | None = None
) -> Dataset:
    """The data set in `scans`, listed here unless it is given.

    Raises:
        UsageError: `out` is inside a plain folder of scans, which later would include our files.
    """
    dataset = dataset or find_dataset(scans, settings.source)
    if (
        dataset.source == "folder"
        and scans.is_dir()
        and out.resolve().is_relative_to(scans.resolve())
    ):
        raise UsageError(
            f"{out}: is inside the folder of the scans, so its pictures would be read as scans; "
            "name another --out"
        )
    return dataset


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
        grid: as in `open_or_build_store`.
        check: read all arrays and compare their SHA-256, also where size and time are unchanged.

    Raises:
        DataError: there are no scans, or not one can be used.
        UsageError: `out` contains something else.
        BusyError: another process writes to the store.
    """
    # before the work, so that a wrong layout is noticed early
    for note in (*dataset.notes, *subject_notes(dataset)):
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
    _check_vanished(dataset, out, stored_ids, entries)
    try:
        recipe, request = choose_recipe(dataset, settings, required, manifest, grid)
    except NoUsableScanError as error:
        write_rejected(out, error.rejected)
        raise no_usable_scan(dataset, out, error.rejected) from None
    # a case of another recipe counts as changed and is prepared again
    recipe_hash = store.recipe_digest(recipe, dataset.classes)

    _rename_split_subjects(dataset, out, removed_ids, entries)
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
    is_listed = stored.is_listed and all(entries.get(case.id) is case for case in cases)
    if is_changed or not is_listed or not _has_same_regions(manifest, dataset):
        write_manifest(out, recipe, classes, cases, request, dataset.regions)
    report(out, cases, sum(result.is_new for result in prepared), rejected)
    return open_store(out)


def _check_vanished(
    dataset: Dataset, out: Path, stored_ids: Collection[str], entries: Mapping[str, StoredCase]
) -> None:
    """Print how many scans and labels are gone since the store was made.

    Raises:
        UsageError: more than half of them are gone, such as after a disk was not mounted.
    """
    present = {case.id for case in dataset.cases}
    unlabelled = {case.id for case in dataset.cases if case.label is None}
    labelled = {case_id for case_id, entry in entries.items() if entry.has_label}
    for kind, before, gone in (
        ("scans", set(stored_ids), set(stored_ids) - present),
        ("labels", labelled, labelled & unlabelled),
    ):
        if not gone:
            continue
        example = naming.printable(min(gone, key=naming.natural_key))
        text = f"{len(gone)} of the {len(before)} {kind} in this store are gone, such as {example}"
        if len(gone) > _MOST_VANISHED * len(before):
            raise UsageError(
                f"{out}: {text}; mount or restore what is missing, or name another --out"
            )
        echo(f"{out}: {text}")


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of the store; None where there is none, or a damaged one, to be made again."""
    if not is_store(out):
        return None
    try:
        return read_manifest(out)
    except DamagedManifestError as error:
        echo(f"{str(error).partition(';')[0]}; it is made again")
        return None


def _rename_split_subjects(
    dataset: Dataset, out: Path, removed_ids: Collection[str], entries: Mapping[str, StoredCase]
) -> None:
    """Give the split the present names of the subjects.

    Otherwise a test scan would be trained on as soon as its subject is renamed. A scan with a new
    id is recognised by its contents, if the scan with the old id is gone.

    Raises:
        DataError: a subject would have two uses.
    """
    file = out / "split.json"
    stored_split = split.read_split_if_present(file)
    if stored_split is None:
        return
    removed = [entry for case_id, entry in entries.items() if case_id in removed_ids]
    names = []
    for case in dataset.cases:
        if case.id in entries:
            names.append((entries[case.id].subject, case.subject))
        elif removed:
            # a file that cannot be read is reported by its preparation
            with contextlib.suppress(DataError):
                contents = image_hash(case)
                names += [
                    (entry.subject, case.subject)
                    for entry in removed
                    if entry.image_hash == contents
                ]
    changed = {(old, new) for old, new in names if old != new}
    if changed:
        split.write_split(split.rename_subjects(stored_split, names), file)
        echo(f"{out}: {len(changed)} subjects were renamed; each keeps its part of the split")


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
