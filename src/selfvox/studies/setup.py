"""Setting up a study: save its plan, or compare it with the saved one, and prepare its scans."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from pathlib import Path
from typing import Any

from selfvox.commands.prepare import prepare
from selfvox.data.preparation.store import open_store
from selfvox.errors import UsageError
from selfvox.runs.atomic_files import write_csv
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Prepare
from selfvox.studies import fingerprint
from selfvox.studies.check_stores import check_stores
from selfvox.studies.design import amounts, fold_numbers
from selfvox.studies.facts import forget_methods, load_facts
from selfvox.studies.plan import Method, Plan, folder_name
from selfvox.studies.run_once import study_lock
from selfvox.studies.saved_plan import align_with_saved, load_plan, save_plan
from selfvox.studies.stores import (
    STORE,
    draw_subjects,
    fold_store,
    make_folds,
    make_method_stores,
    split_of,
    trainable_subjects,
)

# what may differ from the saved plan: results so far stay valid
_MAY_GROW = {
    "labels",
    "fractions",
    "seeds",
    "pretrain_seeds",
    "methods",
    "reference",
    "equal_compute",
    "against",
    "corpus",
}


def set_up(plan: Plan, out: Path) -> Plan:
    """Save the plan in `out`, or compare it with the one saved there; prepare and check the scans.

    Seeds, labels and methods may be added to a saved plan; finished work stays. All of a plan may
    change until the first run begins; after that, a method that was never measured may.

    Returns:
        The plan as it is saved: methods that were added come last.

    Raises:
        UsageError: `out` contains another study with runs, or something else; or the plan needs
            more labels than there are.
        DataError: the scans cannot be used, a test scan is also trained on, or the scans or their
            split differ from those that finished work was done with.
    """
    file = out / "plan.yaml"
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with study_lock(out, "plan", wait=True):
        saved = load_plan(file) if file.exists() else None
        if saved is not None:
            plan = align_with_saved(plan, saved)
            _discard_outdated(plan, saved, out)
        if plan != saved:
            save_plan(plan, file)
        recorded = fingerprint.recorded(out)
        _prepare_stores(plan, out)
        fingerprint.record(out, recorded)
        write_subjects(plan, out)
    check_stores(plan, out)
    return plan


def write_subjects(plan: Plan, out: Path) -> None:
    """Write who trains, validates and tests in which cells, for those who train elsewhere."""
    rows: list[list[Any]] = []
    for fold in fold_numbers(plan):
        store = open_store(fold_store(out / STORE, fold))
        split = split_of(store)
        for part in ("validation", "test"):
            rows += [[fold, "", "", part, subject] for subject in getattr(split, part)]
        for seed, (labels, fraction) in itertools.product(plan.seeds, amounts(plan)):
            if labels is not None and labels > len(trainable_subjects(store)):
                continue  # refused later
            drawn = draw_subjects(store, seed, labels, fraction)
            rows += [[fold, len(drawn), seed, "train", subject] for subject in drawn]
    write_csv(out / "subjects.csv", ["fold", "labels", "seed", "part", "subject"], rows)


def _check_folder(out: Path) -> None:
    """Refuse a folder that contains something else than a study."""
    names = [path.name for path in out.iterdir()] if out.exists() else []
    foreign = [name for name in names if name != "locks" and not fnmatch.fnmatch(name, ".*.part.*")]
    # the plan is looked for last: another process that starts meanwhile writes it first of all
    if foreign and not (out / "plan.yaml").exists():
        raise UsageError(f"{out}: is not empty and contains no study; name another --out")


def _prepare_stores(plan: Plan, out: Path) -> None:
    """Prepare the study's scans, their folds, and the scans of single methods."""
    settings = {name: value for name, value in plan.prepare.items() if value is not None}
    split = {
        "test": plan.test,
        "validation": 0 if plan.folds else plan.validation,  # each fold draws its own
        "seed": plan.split_seed,
    }
    prepare(resolve(Prepare, {**settings, **split, "scans": plan.data, "out": out / STORE}))
    store = open_store(out / STORE)
    if plan.folds:
        make_folds(plan, store)
    for method in plan.trained_methods:
        make_method_stores(plan, method, store, out)


def _discard_outdated(plan: Plan, saved: Plan, out: Path) -> None:
    """Remove stores and facts of what the plan no longer contains; no run depends on them.

    Before the first run, everything may change. Afterwards only a method that was never measured,
    for instance because it was refused: no twin, pre-training or store of others is named after it.

    Raises:
        UsageError: a run may depend on it.
        BusyError: another process is measuring it.
    """
    difference = _difference(plan, saved)
    changed = [
        name for name, entry in saved.methods.items() if plan.methods.get(name, entry) != entry
    ]
    measured = load_facts(out).keys()
    begun = {path.parent.name for path in out.glob("cells/*/*")}
    if begun or any(out.glob("pretrain/*")):
        if difference:
            raise UsageError(
                f"{out}: contains a study of another plan ({difference}); name another --out"
            )
        for name in changed:
            if name in measured:
                raise UsageError(
                    f"{out}: contains a study with another method {name}; "
                    "name another --out, or rename the method"
                )
        stores = [
            folder
            for method in saved.resolved_methods
            if method.name in changed
            for folder in _stores_of(method)
        ]
        # a method of this name was measured, then left out of the plan, and is new again
        added = plan.methods.keys() - saved.methods.keys()
        outdated = measured & {name for name in added if folder_name(name) not in begun}
    elif difference or changed or measured - saved.methods.keys():
        stores = [f"{STORE}-folds", "scans", "labelled", "unlabelled", "tissues"]
        outdated = set(measured)
        # preparation is expensive: the store stays unless the scans or their recipe change
        if (plan.data.resolve(), plan.prepare) != (saved.data.resolve(), saved.prepare):
            stores.append(STORE)
    else:
        return
    if stores or outdated:
        with study_lock(out, "trial"):
            forget_methods(out, outdated)
            fingerprint.forget(out, *stores)


def _stores_of(method: Method) -> list[str]:
    """The folders of a method's own stores, also those that it may not have."""
    folder = folder_name(method.name)
    unlabelled = folder_name(method.unlabelled_as or method.name)
    return [
        f"scans/{folder}",
        f"scans/{folder}-tissues",
        f"tissues/{folder}",
        f"labelled/{folder}",
        f"labelled/{folder}-folds",
        f"unlabelled/{folder}",
        f"unlabelled/{unlabelled}-{folder}",
    ]


def _difference(plan: Plan, saved: Plan) -> str | None:
    """The first setting in which two plans differ, among those that may not grow."""
    for field in dataclasses.fields(Plan):
        old = getattr(saved, field.name)
        value = getattr(plan, field.name)
        if isinstance(value, Path) and isinstance(
            old, Path
        ):  # the same path may be spelt in several ways
            old = old.resolve()
            value = value.resolve()
        if field.name not in _MAY_GROW and old != value:
            return f"{field.name}: {old}, not {value}"
    return None
