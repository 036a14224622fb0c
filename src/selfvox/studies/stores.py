"""The stores of a study: of its scans, of their folds, and of other scans; who of them may train."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from selfvox.data.preparation import split as splits
from selfvox.data.preparation.build_store import count_channels, open_or_build_store
from selfvox.data.preparation.leakage import SeenScans, find_leaks
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, open_store, read_manifest, subject_grades
from selfvox.errors import DataError
from selfvox.runs import atomic_files
from selfvox.runs.weights import read_encoder
from selfvox.settings.options import resolve
from selfvox.settings.verbs import PreparationSettings
from selfvox.studies import plan as plans
from selfvox.studies.plan import Plan

STORE = "store"


def make_own(plan: Plan, name: str, store: Store, out: Path) -> None:
    """Make the stores that a method needs of its own: of other scans, or of the study's by an encoder's recipe."""
    found, folder = plans.resolve_method(plan, name).pretrain, scans_of(plan, name, out, None)
    if isinstance(found, dict) and "scans" in found:
        scans, how = (
            Path(found["scans"]),
            {"source": found.get("source", PreparationSettings.source)},
        )
        # the study's recipe for all, so that methods differ in nothing else
        recipe: Recipe | None = store.recipe
        if count_channels(scans, how["source"]) != len(store.recipe.channel_names):
            recipe, how = (
                None,
                how | {"size": store.recipe.size, "spacing": store.recipe.spacing_mm},
            )
        ready = open_or_build_store(scans, folder, resolve(PreparationSettings, how), recipe=recipe)
        if ready.path.resolve() != folder.resolve():  # they were a store already
            _link(ready, folder)
            if (split := ready.split()) is not None:
                splits.write_split(split, folder / "split.json")
    elif isinstance(found, dict) and plan.transductive:
        _link(store, folder)
    elif isinstance(found, str) and store_of(plan, name, out) != STORE:
        own, recipe = (
            out / store_of(plan, name, out),
            Recipe.from_dict(card_of(Path(found))["recipe"]),
        )
        open_or_build_store(
            plan.data,
            own,
            resolve(PreparationSettings, {"source": plan.source}),
            recipe=recipe,
            need_labels=True,
        )
        if plan.folds:
            make_folds(plan, open_store(own))
        else:
            with atomic_files.atomic_write(own / "split.json") as temporary:
                shutil.copyfile(store.path / "split.json", temporary)


def make_folds(plan: Plan, store: Store) -> None:
    """Make a store for each fold, with a split of its own; the arrays are the store's."""
    assert plan.folds is not None
    subjects = sorted({case.subject for case in store.cases if case.is_labelled})
    without = sorted({case.subject for case in store.cases} - set(subjects))
    # every fold has about the same share of each grade
    classes = dict.fromkeys(subjects, -1) | subject_grades(store.cases)
    for number, test in enumerate(splits.make_folds(classes, plan.folds, plan.split_seed)):
        folder = fold_store(store.path, number)
        rest = splits.make_split(
            set(subjects) - set(test), 0, plan.validation, plan.split_seed, classes
        )
        train = (*rest.train, *without)
        folder.mkdir(parents=True, exist_ok=True)
        splits.write_split(dataclasses.replace(rest, train=train, test=test), folder / "split.json")
        _link(store, folder)


def _link(store: Store, folder: Path) -> None:
    """Make a store of the same cases, their arrays those of `store`."""
    folder.mkdir(parents=True, exist_ok=True)
    for there in store.path.iterdir():
        if there.is_dir() and not (folder / there.name).is_symlink():
            (folder / there.name).symlink_to(os.path.relpath(there.resolve(), folder.resolve()))
    atomic_files.write_json(folder / "manifest.json", read_manifest(store.path))


def fold_store(store: Path, fold: int | None) -> Path:
    """Where the store of a fold lies: beside the whole store."""
    return store if fold is None else store.parent / f"{store.name}-folds" / str(fold)


def scans_of(plan: Plan, name: str, out: Path, fold: int | None) -> Path:
    """The store that a method is pre-trained on; one for all methods of the same scans."""
    found = plans.resolve_method(plan, name).pretrain
    if isinstance(found, dict) and "scans" in found:
        others = ((other, plans.resolve_method(plan, other).pretrain) for other in plan.methods)
        first = next(
            name
            for name, each in others
            if isinstance(each, dict) and each.get("scans") == found["scans"]
        )
        return out / "scans" / plans.folder_name(first)
    return out / "scans" / "all" if plan.transductive else fold_store(out / STORE, fold)


def store_of(plan: Plan, name: str, out: Path) -> str:
    """The store that a method is fine-tuned on, within the study's folder: the study's, unless an encoder differs."""
    found = plans.resolve_method(plan, name).pretrain
    if isinstance(found, str):
        recipe = Recipe.from_dict(card_of(Path(found))["recipe"])
        ours = open_store(out / STORE).recipe
        # other channels are taken by --first-conv, in scans prepared like all others
        if not recipe.is_equivalent(ours) and len(recipe.channel_names) == len(ours.channel_names):
            return f"labelled/{plans.folder_name(name)}"
    return STORE


def card_of(encoder: Path) -> dict[str, Any]:
    """What is said of an encoder: of a pre-training run, of its `encoder/` folder, or of a fine-tuning run."""
    return read_encoder(encoder)[1]


def split_of(store: Store) -> Split:
    """Who trains, validates and tests: every store of a study that is trained on has a split."""
    split = store.split()
    assert split is not None
    return split


def trainable(store: Store) -> set[str]:
    """The labelled subjects that may be trained on."""
    return {case.subject for case in store.cases if case.is_labelled} & set(split_of(store).train)


def guard(store: Store, what: str, by: SeenScans, transductive: bool) -> int:
    """Refuse what has seen test scans, by their contents or their subjects, unless the plan allows it.

    Args:
        store: has the split.
        what: an encoder, or the scans of a pre-training, for the refusal.
        by: what was seen.
        transductive: allow it.

    Returns:
        How many test scans were seen.

    Raises:
        DataError: some were, and `transductive` is not given.
    """
    known, count = find_leaks(store, split_of(store), by)
    if known and not transductive:
        raise DataError(
            f"{what}: {len(known)} of {count} test scans, or subjects of their name, are seen in pre-training "
            f"({known[0]} first); pre-train without them, or write `transductive: true` into the plan"
        )
    return len(known)
