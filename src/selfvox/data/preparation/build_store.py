"""From a data set to a store: fit the recipe, prepare what changed, report what was rejected."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfvox.data.preparation import parallel, split, store
from selfvox.data.preparation.fit_recipe import NoUsableScanError, fit_recipe
from selfvox.data.preparation.prepare_case import (
    CaseJob,
    PreparedCase,
    Rejected,
    file_states,
    image_hash,
    make_rejected,
    prepare_case,
    request_hash,
    with_absolute_paths,
)
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import Store, StoredCase, is_store, open_store
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.ops import regions
from selfvox.runs import atomic_files
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

_FOLDERS = ("cases", "images", "labels", "foreground")
_FILES = ("manifest.json", "rejected.csv", "split.json", ".lock")
_PRINTED = 5  # remarks, and rejected scans, of which there may be thousands


def open_or_build_store(
    scans: Path,
    out: Path,
    settings: PreparationSettings,
    recipe: Recipe | None = None,
    need_labels: bool = False,
    first: int | None = None,
    dataset: Dataset | None = None,
) -> Store:
    """Open `scans` if it is a store; otherwise build a store of them in `out`.

    Args:
        scans: a store, or anything that `find_dataset` finds cases in.
        out: where a store is built.
        settings: how to prepare.
        recipe: of an encoder, which the scans must follow; default: chosen from the scans.
        need_labels: refuse a data set without a single label or grade.
        first: prepare only so many cases, for a preview; default: all.
        dataset: the scans, if they are listed already; default: they are listed here.

    Raises:
        DataError: the store follows another recipe, no scan can be used, or there are no labels.
        UsageError: an option contradicts the recipe of the store or of the encoder.
    """
    if recipe is not None:
        _check_options(settings, recipe, "the encoder's scans were", "pre-train with it too")
    if is_store(scans):
        ready = open_store(scans)
        if recipe is not None and not ready.recipe.is_equivalent(recipe):
            raise DataError(
                f"{scans}: was prepared in another way than the encoder's scans; name the scans, "
                "not the store"
            )
        _check_options(settings, ready.recipe, f"{scans} was", "name the scans")
    else:
        dataset = find_scans(scans, out, settings, dataset)
        dataset = dataclasses.replace(dataset, cases=dataset.cases[:first])
        ready = build_store(dataset, out, settings, recipe)
    if need_labels and not any(case.is_labelled for case in ready.cases):
        raise DataError(
            f"{scans}: has neither labels nor grades; name a data set with labels, or a table with "
            "a grade"
        )
    return ready


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
    dataset: Dataset, out: Path, settings: PreparationSettings, recipe: Recipe | None = None
) -> Store:
    """Prepare a data set into the store `out`, or bring that store up to date.

    Args:
        dataset: the scans.
        out: folder of the store.
        settings: how to prepare.
        recipe: of an encoder, which the scans must follow; default: chosen from the scans.

    Raises:
        DataError: there are no scans, or not one can be used.
        UsageError: `out` contains something else.
        BusyError: another process writes to the store.
    """
    for note in dataset.notes:
        echo(note)
    if not dataset.cases:
        raise DataError(f"{dataset.root}: contains no scans; name the folder of the scans")
    if out.exists() and not is_store(out):
        names = {file.name for file in out.iterdir()}
        if names - {*_FOLDERS, *_FILES}:
            raise UsageError(f"{out}: contains files that are not of a store; name another --out")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    with atomic_files.folder_lock(out):
        for folder in ("", *_FOLDERS):
            atomic_files.remove_temporary_files(out / folder)
        return _update_store(dataset, out, settings, recipe)


def _update_store(
    dataset: Dataset, out: Path, settings: PreparationSettings, required: Recipe | None
) -> Store:
    """Prepare what is new or changed, remove what is gone; the store is locked by the caller."""
    manifest = store.read_manifest(out) if is_store(out) else None
    stored_ids = {file.stem for file in (out / "cases").glob("*.json")}
    removed_ids = stored_ids - {case.id for case in dataset.cases}
    if stored_ids and removed_ids == stored_ids:
        raise UsageError(
            f"{out}: is a store of other scans, none of which is in {dataset.root}; "
            "name another --out"
        )
    try:
        recipe, request = _choose_recipe(dataset, settings, required, manifest)
    except NoUsableScanError as error:
        _write_rejected(out, error.rejected)
        raise _no_usable_scan(dataset, out, error.rejected) from None
    recipe_hash = store.recipe_digest(recipe, dataset.classes)

    _rename_split_subjects(dataset, out, removed_ids)
    intact = _find_intact_cases(dataset, out, recipe_hash)
    new = [case for case in dataset.cases if case.id not in intact]
    jobs = _make_jobs(new, dataset, out, recipe, recipe_hash)
    is_changed = bool(jobs or removed_ids) or manifest is None
    if is_changed:
        # without its cases the store counts as unfinished, if this process is killed from here on
        store.write_manifest(out, recipe, dataset.classes, None, request, dataset.regions)
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
    _write_rejected(out, rejected)
    cases = [*intact.values(), *(result.case for result in prepared)]
    if not cases:
        raise _no_usable_scan(dataset, out, rejected)

    classes = dataset.classes or _classes_of_labels(cases)
    if dataset.regions and classes:
        regions.check_regions(dataset.regions, classes)
    if is_changed or not _is_up_to_date(manifest, dataset, cases):
        store.write_manifest(out, recipe, classes, cases, request, dataset.regions)
    _report(out, cases, sum(result.is_new for result in prepared), rejected)
    return open_store(out)


def _choose_recipe(
    dataset: Dataset,
    settings: PreparationSettings,
    required: Recipe | None,
    manifest: Mapping[str, Any] | None,
) -> tuple[Recipe, dict[str, Any]]:
    """The required recipe, or the store's if the request is the same, or a new one.

    Returns:
        The recipe, and the request that led to it, which the manifest keeps.

    Raises:
        DataError: the scans have another number of channels than the required recipe.
    """
    if required is not None:
        if len(required.channel_names) != len(dataset.channel_names):
            raise DataError(
                f"{dataset.root}: has {len(dataset.channel_names)} channels "
                f"({', '.join(dataset.channel_names)}) where the encoder was trained with "
                f"{len(required.channel_names)} ({', '.join(required.channel_names)}); name scans "
                "like those it was trained with (`finetune` can adapt it: --first-conv mean)"
            )
        return required, {"recipe": required.to_dict()}
    request: dict[str, Any] = {
        "channel_names": list(dataset.channel_names),
        "size": None if settings.size is None else list(settings.size),
        "spacing_mm": None if settings.spacing is None else list(settings.spacing),
        "intensity": settings.intensity,
    }
    if manifest is not None:
        fitted_to = manifest["asked"].get("fitted_to", 0)
        is_same = manifest["asked"] == request | {"fitted_to": fitted_to}
        # a window that was fitted to a handful of scans must not stay for ever
        if is_same and len(dataset.cases) <= 2 * fitted_to:
            # of a damaged manifest
            with contextlib.suppress(KeyError, TypeError, ValueError):
                return Recipe.from_dict(manifest["recipe"]), manifest["asked"]
    recipe = fit_recipe(dataset, settings)
    return recipe, request | {"fitted_to": len(dataset.cases)}


def _rename_split_subjects(dataset: Dataset, out: Path, removed_ids: Collection[str]) -> None:
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
    removed = _read_entries(out, removed_ids)
    entries = _read_entries(out, [case.id for case in dataset.cases])
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
                    for entry in removed.values()
                    if entry.image_hash == contents
                ]
    changed = {(old, new) for old, new in names if old != new}
    if changed:
        split.write_split(split.rename_subjects(stored_split, names), file)
        echo(f"{out}: {len(changed)} subjects were renamed; each keeps its part of the split")


def _read_entries(out: Path, case_ids: Collection[str]) -> dict[str, StoredCase]:
    """The stored cases among these ids."""
    entries = {}
    for case_id in case_ids:
        entry = store.read_entry(out, case_id)
        if entry is not None:
            entries[case_id] = entry
    return entries


def _find_intact_cases(dataset: Dataset, out: Path, recipe_hash: str) -> dict[str, StoredCase]:
    """The cases with unchanged source files (size and time) and undamaged arrays."""
    unchanged = {}
    for case in dataset.cases:
        entry = store.read_entry(out, case.id)
        if entry is None or not _is_unchanged(entry, case, recipe_hash):
            continue
        if (entry.subject, entry.grade) != (case.subject, case.grade):
            entry = dataclasses.replace(entry, subject=case.subject, grade=case.grade)
            store.write_entry(out, entry)
        unchanged[case.id] = entry
    # hashing releases the interpreter's lock, so threads are enough
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = list(pool.map(lambda entry: store.is_intact(out, entry), unchanged.values()))
    intact = {}
    for entry, is_intact in zip(unchanged.values(), checks, strict=True):
        if is_intact:
            intact[entry.id] = entry
        else:
            echo(f"{entry.id}: its arrays are damaged; preparing it again")
    return intact


def _is_unchanged(entry: StoredCase, case: Case, recipe_hash: str) -> bool:
    """Whether the stored case was made in the same way, of files that look untouched."""
    return (
        entry.recipe_hash == request_hash(case, recipe_hash)
        and entry.has_label == (case.label is not None)
        and entry.sources == file_states(case)
    )


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
    values = sorted({value for case in cases for value in case.label_values} | {0})
    return {value: f"class {value}" if value else "background" for value in values}


def _is_up_to_date(
    manifest: Mapping[str, Any] | None, dataset: Dataset, cases: Sequence[StoredCase]
) -> bool:
    """Whether the manifest lists exactly these cases, and the regions of the data set."""
    if manifest is None:
        return False
    # as JSON gives them, lists for tuples
    entries = json.loads(json.dumps([case.to_dict() for case in store.sort_cases(cases)]))
    return manifest["cases"] == entries and manifest.get("regions") == regions.regions_to_json(
        dataset.regions
    )


def _no_usable_scan(dataset: Dataset, out: Path, rejected: Sequence[Rejected]) -> DataError:
    table = f" (all in {out / 'rejected.csv'})" if len(rejected) > 1 else ""
    return DataError(
        f"{dataset.root}: not one of {len(rejected)} scans can be used{table}; the first: "
        f"{rejected[0].file}: {rejected[0].reason}"
    )


def _write_rejected(out: Path, rejected: Sequence[Rejected]) -> None:
    table = out / "rejected.csv"
    if not rejected:
        table.unlink(missing_ok=True)
        return
    ordered = sorted(rejected, key=lambda scan: scan.id)
    atomic_files.write_csv(table, ("id", "file", "reason"), map(dataclasses.astuple, ordered))


def _report(
    out: Path, cases: Sequence[StoredCase], new_count: int, rejected: Sequence[Rejected]
) -> None:
    """Print remarks on the cases, rejected scans, and how many there are of each."""
    cases = store.sort_cases(cases)
    _report_duplicates(cases)
    remarks = [f"{case.id}: {note}" for case in cases for note in case.notes]
    for remark in remarks[:_PRINTED]:
        echo(remark)
    if len(remarks) > _PRINTED:
        echo(f"and {len(remarks) - _PRINTED} more remarks, in {out / 'cases'}")
    for scan in rejected[:_PRINTED]:
        echo(f"rejected {scan.file}: {scan.reason}")
    ending = f", {len(rejected)} rejected (see {out / 'rejected.csv'})" if rejected else ""
    labelled = sum(case.has_label for case in cases)
    echo(
        f"{out}: {len(cases)} scans, {labelled} with labels; {new_count} prepared now, "
        f"{len(cases) - new_count} unchanged{ending}"
    )


def _report_duplicates(cases: Sequence[StoredCase]) -> None:
    """Print scans with the same contents that belong to several subjects."""
    by_contents = defaultdict(list)
    for case in cases:
        by_contents[case.image_hash].append(case)
    for duplicates in by_contents.values():
        if len({case.subject for case in duplicates}) > 1:
            ids = ", ".join(case.id for case in duplicates)
            echo(
                f"{ids}: the same scan under several subjects; training and test may share it, "
                "remove all but one"
            )


def _check_options(
    settings: PreparationSettings, recipe: Recipe, prepared: str, remedy: str
) -> None:
    """Refuse options that contradict a recipe which is fixed already.

    Args:
        settings: the options.
        recipe: that is fixed.
        prepared: beginning of the message: what was prepared with it, and `was` or `were`.
        remedy: end of the message.

    Raises:
        UsageError: the first such option.
    """
    fits = {
        "size": settings.size in (None, recipe.size),
        "spacing": settings.spacing in (None, recipe.spacing_mm),
        "intensity": _intensity_fits(settings.intensity, recipe),
    }
    for option, is_fitting in fits.items():
        if not is_fitting:
            raise UsageError(
                f"{option}: {prepared} prepared differently; leave --{option} out, or {remedy}"
            )


def _intensity_fits(requested: str, recipe: Recipe) -> bool:
    """Whether the option names the recipe's kinds, one for all channels or one per channel."""
    kinds = [intensity.kind for intensity in recipe.intensity]
    requests = [kind.strip() for kind in requested.split(",")]
    if len(requests) == 1:
        requests *= len(kinds)
    if len(requests) != len(kinds):
        return False
    return all(request in ("auto", kind) for request, kind in zip(requests, kinds, strict=True))
