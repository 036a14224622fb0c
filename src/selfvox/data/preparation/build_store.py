"""From a data set to a store: fit the recipe, prepare what is new or changed, report what was rejected."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfvox.data.preparation import parallel, split, store
from selfvox.data.preparation import prepare_case as making
from selfvox.data.preparation.fit_recipe import NoUsableScanError, fit_recipe
from selfvox.data.preparation.prepare_case import CaseJob, PreparedCase, Rejected
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import Store, StoredCase, is_store, open_store
from selfvox.data.sources import Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.ops import regions
from selfvox.runs import atomic_files
from selfvox.runs.progress import echo, progress_bar
from selfvox.settings.verbs import PreparationSettings

_OURS = {
    "manifest.json",
    "cases",
    "images",
    "labels",
    "foreground",
    "rejected.csv",
    "split.json",
    ".lock",
}


def open_or_build_store(
    scans: Path,
    out: Path,
    settings: PreparationSettings,
    recipe: Recipe | None = None,
    need_labels: bool = False,
    first: int | None = None,
) -> Store:
    """The store that `scans` is, or that is made from them in `out`.

    Args:
        scans: a store, or anything that `find` finds cases in.
        out: where a store is made if `scans` is none.
        settings: how to prepare.
        recipe: that of an encoder, which scans must follow; default: chosen from the scans.
        need_labels: refuse a data set without a single label.
        first: prepare only so many cases, for a look; default: all.

    Raises:
        DataError: the store follows another recipe, no scan can be used, or no labels.
        UsageError: an option asks for another recipe than the store's or the encoder's.
    """
    if recipe is not None:
        _check_fits(recipe, settings, "the encoder's scans were", "pre-train with it too")
    if is_store(scans):
        ready = open_store(scans)
        if recipe is not None and not ready.recipe.does_as(recipe):
            raise DataError(
                f"{scans}: was prepared in another way than the encoder's scans; name the scans, not the store"
            )
        _check_fits(ready.recipe, settings, f"{scans} was", "name the scans")
    else:
        dataset = _found(scans, out, settings)
        ready = _build(
            dataclasses.replace(dataset, cases=dataset.cases[:first]), out, settings, recipe
        )
    if need_labels and not any(case.is_labelled for case in ready.cases):
        raise DataError(
            f"{scans}: has neither labels nor grades; name a data set with labels, or a table with a grade"
        )
    return ready


def count_channels(scans: Path, source: str) -> int:
    """How many channels scans, or those of a store, have."""
    if is_store(scans):
        return len(open_store(scans).recipe.channel_names)
    return len(find_dataset(scans, source).channel_names)


def _found(scans: Path, out: Path, settings: PreparationSettings) -> Dataset:
    """The data set, where what we write does not lie among its scans."""
    dataset = find_dataset(scans, settings.source)
    if (
        dataset.source == "folder"
        and scans.is_dir()
        and out.resolve().is_relative_to(scans.resolve())
    ):
        raise UsageError(
            f"{out}: lies among the scans, so that its pictures would be taken for scans; name another --out"
        )
    return dataset


def _build(
    dataset: Dataset, out: Path, settings: PreparationSettings, recipe: Recipe | None
) -> Store:
    for note in dataset.notes:
        echo(note)
    if not dataset.cases:
        raise DataError(f"{dataset.root}: holds no scans; name the folder they lie in")
    if out.exists() and not is_store(out) and {each.name for each in out.iterdir()} - _OURS:
        raise UsageError(f"{out}: holds other things than a store; name another --out")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    with atomic_files.folder_lock(out):
        for left in out.glob("**/.*.part.*"):
            left.unlink()  # of a process that was killed while writing
        return _bring_up_to_date(dataset, out, settings, recipe)


def _bring_up_to_date(
    dataset: Dataset, out: Path, settings: PreparationSettings, given: Recipe | None
) -> Store:
    before = store.read_manifest(out) if is_store(out) else None
    stored, there = (
        {file.stem for file in (out / "cases").glob("*.json")},
        {case.id for case in dataset.cases},
    )
    if stored and not stored & there:
        raise UsageError(
            f"{out}: is a store of other scans, none of which lies in {dataset.root}; name another --out"
        )
    asked = _asked(dataset, settings, given)
    try:
        recipe, asked = _recipe(dataset, settings, given, before, asked)
    except NoUsableScanError as error:
        _write_rejected(out, error.refused)
        raise _none_usable(dataset, out, error.refused) from None
    recipe_hash = store.recipe_digest(recipe, dataset.classes)

    gone = stored - there
    _carry_split_over(dataset, out, gone)
    intact = _intact(dataset, out, recipe_hash)
    allowed = None if dataset.classes is None else tuple(sorted(dataset.classes))
    jobs = [
        CaseJob(
            out.absolute(),
            making.with_absolute_paths(case),
            recipe,
            allowed,
            making.request_hash(case, recipe_hash),
        )
        for case in dataset.cases
        if case.id not in intact
    ]
    if jobs or gone or before is None:
        store.write_manifest(out, recipe, dataset.classes, None, asked, dataset.regions)
    for case_id in gone:
        store.remove_case(out, case_id)
    made, refused = dict(intact), []
    count = 0
    for result in _run(jobs, settings):
        if isinstance(result, PreparedCase):
            made[result.case.id] = result.case
            count += result.made
        else:
            refused.append(result)
            store.remove_case(out, result.id)
    _write_rejected(out, refused)
    if not made:
        raise _none_usable(dataset, out, refused)
    classes = dataset.classes or _classes_found(made.values())
    if dataset.regions and classes:
        regions.check_regions(dataset.regions, classes)
    listed = json.loads(json.dumps([case.to_dict() for case in store.sort_cases(made.values())]))
    parts = regions.regions_to_json(dataset.regions)
    if (
        jobs
        or gone
        or before is None
        or before["cases"] != listed
        or before.get("regions") != parts
    ):
        store.write_manifest(out, recipe, classes, list(made.values()), asked, dataset.regions)
    _summary(out, list(made.values()), count, refused)
    return open_store(out)


def _asked(dataset: Dataset, settings: PreparationSettings, given: Recipe | None) -> dict[str, Any]:
    """What decides on the recipe, besides the scans."""
    if given is not None:
        return {"recipe": given.to_dict()}
    return {
        "channel_names": list(dataset.channel_names),
        "size": None if settings.size is None else list(settings.size),
        "spacing_mm": None if settings.spacing is None else list(settings.spacing),
        "intensity": settings.intensity,
    }


def _recipe(
    dataset: Dataset,
    settings: PreparationSettings,
    given: Recipe | None,
    before: dict[str, Any] | None,
    asked: dict[str, Any],
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe given, or the store's where the same was asked for, or a new one; and what was asked, to be kept."""
    if given is not None:
        if len(given.channel_names) != len(dataset.channel_names):
            raise DataError(
                f"{dataset.root}: has {len(dataset.channel_names)} channels ({', '.join(dataset.channel_names)}) where "
                f"the encoder was trained with {len(given.channel_names)} ({', '.join(given.channel_names)}); "
                "name scans like those it was trained with (`finetune` can adapt it: --first-conv mean)"
            )
        return given, asked
    if before is not None:
        fitted_to = before["asked"].get("fitted_to", 0)
        # a window fitted to a handful of scans must not stay for ever
        if (
            before["asked"] == asked | {"fitted_to": fitted_to}
            and len(dataset.cases) <= 2 * fitted_to
        ):
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of a damaged manifest
                return Recipe.from_dict(before["recipe"]), before["asked"]
    recipe = fit_recipe(dataset, settings)
    return recipe, asked | {"fitted_to": len(dataset.cases)}


def _carry_split_over(dataset: Dataset, out: Path, gone: Collection[str]) -> None:
    """Give the split the names that the subjects have now, so that no test scan is trained on under another one.

    A scan whose id is `gone` is known by its contents under its new one.

    Raises:
        DataError: a subject would be in two of its parts.
    """
    file = out / "split.json"
    there = split.read_split_if_present(file)
    if there is None:
        return
    known = {case.id: store.read_case(out, case.id) for case in dataset.cases}
    names = [
        (entry.subject, case.subject)
        for case in dataset.cases
        if (entry := known[case.id]) is not None
    ]
    left = [entry for case_id in gone if (entry := store.read_case(out, case_id)) is not None]
    for case in dataset.cases if left else ():
        if known[case.id] is None:
            with contextlib.suppress(DataError):  # its preparation will say why
                contents = making.image_hash(case)
                names += [
                    (entry.subject, case.subject) for entry in left if entry.image_hash == contents
                ]
    changed = {(old, new) for old, new in names if old != new}
    if changed:
        split.write_split(split.rename_subjects(there, names), file)
        echo(
            f"{out}: names of subjects that changed: {len(changed)}; each keeps its part of the split"
        )


def _intact(dataset: Dataset, out: Path, recipe_hash: str) -> dict[str, StoredCase]:
    """The cases whose source files look untouched (size and time) and whose arrays are whole."""
    known = {}
    for case in dataset.cases:
        entry = store.read_case(out, case.id)
        if entry is None or entry.recipe_hash != making.request_hash(case, recipe_hash):
            continue
        if entry.has_label != (case.label is not None) or entry.sources != making.file_states(case):
            continue
        if (entry.subject, entry.grade) != (case.subject, case.grade):
            entry = dataclasses.replace(entry, subject=case.subject, grade=case.grade)
            store.write_entry(out, entry)
        known[case.id] = entry
    # hashing lets other threads run
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        whole = list(pool.map(lambda entry: store.is_intact(out, entry), known.values()))
    for entry, fine in zip(list(known.values()), whole, strict=True):
        if not fine:
            echo(f"{entry.id}: its arrays are damaged; making them again")
            del known[entry.id]
    return known


def _run(
    jobs: Sequence[CaseJob], settings: PreparationSettings
) -> Iterator[PreparedCase | Rejected]:
    refused = 0
    with progress_bar("preparing", len(jobs)) as shown:
        for number, result in parallel.run(
            making.prepare_case, jobs, settings.workers, settings.scheduler
        ):
            if isinstance(result, parallel.WorkerDiedError):
                reason = "the process that read it died, most likely for want of memory; use fewer --workers"
                result = making.make_rejected(jobs[number].case, reason)
            refused += isinstance(result, Rejected)
            shown.advance(f"{refused} rejected" if refused else "")
            yield result


def _classes_found(cases: Any) -> dict[int, str] | None:
    """Classes by the values that labels hold, where the data set names none."""
    values = sorted({value for case in cases for value in case.label_values} | {0})
    if not any(case.has_label for case in cases):
        return None
    return {value: f"class {value}" if value else "background" for value in values}


def _none_usable(dataset: Dataset, out: Path, refused: Sequence[Rejected]) -> DataError:
    first = f"{refused[0].file}: {refused[0].reason}"
    more = f" (all in {out / 'rejected.csv'})" if len(refused) > 1 else ""
    return DataError(
        f"{dataset.root}: not one of {len(refused)} scans can be used{more}; the first: {first}"
    )


def _write_rejected(out: Path, refused: Sequence[Rejected]) -> None:
    table = out / "rejected.csv"
    if not refused:
        table.unlink(missing_ok=True)
        return
    ordered = sorted(refused, key=lambda each: each.id)
    atomic_files.write_csv(table, ("id", "file", "reason"), map(dataclasses.astuple, ordered))


def _summary(
    out: Path, cases: Sequence[StoredCase], made: int, refused: Sequence[Rejected]
) -> None:
    same = defaultdict(list)
    for case in store.sort_cases(cases):
        same[case.image_hash].append(case)
    for twins in same.values():
        if len({case.subject for case in twins}) > 1:
            listed = ", ".join(case.id for case in twins)
            echo(
                f"{listed}: the same scan under several subjects; training and test may share it, remove all but one"
            )
    remarks = [f"{case.id}: {note}" for case in store.sort_cases(cases) for note in case.notes]
    for remark in remarks[:5]:
        echo(remark)
    if len(remarks) > 5:
        echo(f"and {len(remarks) - 5} more remarks, in {out / 'cases'}")
    for each in refused[:5]:
        echo(f"rejected {each.file}: {each.reason}")
    more = f", {len(refused)} rejected (see {out / 'rejected.csv'})" if refused else ""
    labelled = sum(case.has_label for case in cases)
    echo(
        f"{out}: {len(cases)} scans, {labelled} with labels; {made} prepared now, {len(cases) - made} unchanged{more}"
    )


def _check_fits(recipe: Recipe, settings: PreparationSettings, whose: str, remedy: str) -> None:
    """Refuse options that a recipe which is there already would make mean nothing."""
    asked = [kind.strip() for kind in settings.intensity.split(",")]
    kinds = [each.kind for each in recipe.intensity]
    asked *= len(kinds) if len(asked) == 1 else 1
    for option, fits in (
        ("size", settings.size in (None, recipe.size)),
        ("spacing", settings.spacing in (None, recipe.spacing_mm)),
        (
            "intensity",
            len(asked) == len(kinds)
            and all(a in ("auto", k) for a, k in zip(asked, kinds, strict=True)),
        ),
    ):
        if not fits:
            raise UsageError(
                f"{option}: {whose} prepared otherwise; leave --{option} out, or {remedy}"
            )
