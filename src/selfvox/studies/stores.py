"""The stores of a study: of its scans, of their folds, and of other scans; who may train."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from selfvox.commands.tissues import tissues
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.case_columns import FILE, STAMPS_FILE
from selfvox.data.preparation.leakage import SeenScans, find_leaks
from selfvox.data.preparation.manifest import read_manifest
from selfvox.data.preparation.open_or_build_store import count_channels, open_or_build_store
from selfvox.data.preparation.recipe import recipe_of_card
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase, subject_grades
from selfvox.errors import DataError
from selfvox.runs import atomic_files
from selfvox.runs.card import Card
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import read_encoder
from selfvox.settings.options import resolve
from selfvox.settings.verbs import PreparationSettings, Tissues
from selfvox.studies.plan import Method, Plan, folder_name
from selfvox.training.finetune_request import has_truth, kind_of_truth

STORE = "store"


def make_method_stores(plan: Plan, method: Method, store: Store, out: Path) -> None:
    """Make the stores that a method needs for itself.

    Scans that only it pre-trains on, all scans of a transductive study, the study's scans prepared
    by the recipe of an encoder that comes from elsewhere, or unlabelled scans to fine-tune on.

    Args:
        plan: the study's.
        method: one of its methods.
        store: the study's own.
        out: the study's folder.
    """
    if method.scans_as is not None:
        _make_pretrain_store(plan, method, store, out)
    elif isinstance(method.pretrain, dict) and plan.transductive:
        _link(store, pretrain_store(plan, method, out, None))
    elif isinstance(method.pretrain, str):
        _make_finetune_store(plan, method, method.pretrain, store, out)
    if method.unlabelled_as is not None and not _is_of_study(plan, method):
        # the recipe of its fine-tuning, which `finetune` requires
        labelled = open_store(out / finetune_store(method, out))
        _prepare_others(
            Path(method.finetune["unlabelled"]),
            PreparationSettings.source,
            unlabelled_store(plan, method, out, None),
            labelled,
        )


def _make_pretrain_store(plan: Plan, method: Method, store: Store, out: Path) -> None:
    """Prepare the scans that a method names, unless they are a store already."""
    assert isinstance(method.pretrain, dict)
    scans = Path(method.pretrain["scans"])
    source = method.pretrain.get("source", PreparationSettings.source)
    if method.is_supervised:
        assert method.scans_as is not None
        labelled = out / "tissues" / folder_name(method.scans_as)
        scans = tissues(resolve(Tissues, {"scans": scans, "source": source, "out": labelled}))
        source = "table"
    _prepare_others(scans, source, pretrain_store(plan, method, out, None), store)


def _prepare_others(scans: Path, source: str, folder: Path, store: Store) -> None:
    """Prepare other scans than the study's, unless they are a store already, in a folder of it."""
    # the study's recipe for all, so that methods differ in nothing else
    is_like_study = count_channels(scans, source) == len(store.recipe.channel_names)
    prepared = open_or_build_store(
        scans,
        folder,
        resolve(PreparationSettings, {"source": source}),
        recipe=store.recipe if is_like_study else None,
        grid=None if is_like_study else store.recipe,
    )
    if prepared.path.resolve() == folder.resolve():
        return
    # the scans were a store already
    _link(prepared, folder)
    split = prepared.split()
    if split is not None:
        splits.write_split(split, folder / "split.json")


def _make_finetune_store(plan: Plan, method: Method, encoder: str, store: Store, out: Path) -> None:
    """Prepare the study's scans by the recipe of the encoder, unless it is the study's."""
    name = finetune_store(method, out)
    if name == STORE:
        return
    open_or_build_store(
        plan.data,
        out / name,
        resolve(PreparationSettings, {"source": plan.source}),
        recipe=recipe_of_card(encoder_card(Path(encoder)), encoder),
        need_labels=True,
    )
    if plan.folds:
        make_folds(plan, open_store(out / name))
    else:
        with atomic_files.atomic_write(out / name / "split.json") as temporary:
            shutil.copyfile(store.path / "split.json", temporary)


def make_folds(plan: Plan, store: Store) -> None:
    """Make a store for each fold, with its own split; the arrays are those of `store`."""
    assert plan.folds is not None
    labelled = sorted({case.subject for case in labelled_cases(store)})
    unlabelled = sorted({case.subject for case in store.cases} - set(labelled))
    # every fold gets about the same share of each grade; -1 where there are none
    classes = dict.fromkeys(labelled, -1) | subject_grades(store.cases)
    for number, test in enumerate(splits.make_folds(classes, plan.folds, plan.split_seed)):
        folder = fold_store(store.path, number)
        remaining = set(labelled) - set(test)
        split = splits.make_split(remaining, 0, plan.validation, plan.split_seed, classes)
        train = (*split.train, *unlabelled)
        folder.mkdir(parents=True, exist_ok=True)
        split = dataclasses.replace(split, train=train, test=test)
        splits.write_split(split, folder / "split.json")
        _link(store, folder)


def _link(store: Store, folder: Path) -> None:
    """Make a store of the same cases, with links to the table and the arrays of `store`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in store.path.iterdir():
        link = folder / path.name
        if (path.is_dir() or path.name in (FILE, STAMPS_FILE)) and not link.is_symlink():
            # relative, so that the study may be moved
            link.symlink_to(os.path.relpath(path.resolve(), folder.resolve()))
    # last: a folder with a manifest is a complete store
    write_checked(folder / "manifest.json", read_manifest(store.path))


def fold_store(store: Path, fold: int | None) -> Path:
    """The store of a fold; `store` itself for None."""
    return store if fold is None else store.parent / f"{store.name}-folds" / str(fold)


def pretrain_store(plan: Plan, method: Method, out: Path, fold: int | None) -> Path:
    """The store that a method is pre-trained on; methods of the same scans share one."""
    if method.scans_as is not None:
        name = folder_name(method.scans_as)
        return out / "scans" / (f"{name}-tissues" if method.is_supervised else name)
    return out / "scans" / "all" if plan.transductive else fold_store(out / STORE, fold)


def unlabelled_store(plan: Plan, method: Method, out: Path, fold: int | None) -> Path:
    """The store of the unlabelled scans that a method is fine-tuned on.

    Methods of the same scans share one. If they are the study's own, those that may train.
    """
    assert method.unlabelled_as is not None
    if _is_of_study(plan, method):
        return fold_store(out / finetune_store(method, out), fold)
    name = folder_name(method.unlabelled_as)
    store = finetune_store(method, out)
    # by another recipe than the study's, so it is of this method alone
    return out / "unlabelled" / (name if store == STORE else f"{name}-{folder_name(method.name)}")


def _is_of_study(plan: Plan, method: Method) -> bool:
    """Whether the unlabelled scans of a method are in the study's own data."""
    return Path(method.finetune["unlabelled"]).resolve() == plan.data.resolve()


def finetune_store(method: Method, out: Path) -> str:
    """The store that a method is fine-tuned on, within the study's folder.

    It is the study's, unless the method's encoder was trained with another recipe.
    """
    if isinstance(method.pretrain, str):
        recipe = recipe_of_card(encoder_card(Path(method.pretrain)), method.pretrain)
        study_recipe = open_store(out / STORE).recipe
        # with other channels --first-conv adapts the encoder, and the scans stay as they are
        has_same_channels = len(recipe.channel_names) == len(study_recipe.channel_names)
        if has_same_channels and not recipe.is_equivalent(study_recipe):
            return f"labelled/{folder_name(method.name)}"
    return STORE


def encoder_card(encoder: Path) -> Card:
    """The card of an encoder: of a pre-training run, its `encoder/`, or a fine-tuning run."""
    return read_encoder(encoder)[1]


def split_of(store: Store) -> Split:
    """The split of a store that is trained on; in a study each of these has one."""
    split = store.split()
    assert split is not None
    return split


def labelled_cases(store: Store) -> list[StoredCase]:
    """The cases with what is learnt from: label images if there are any, else grades."""
    kind = kind_of_truth(store.cases)
    return [case for case in store.cases if kind is not None and has_truth(case, kind)]


def trainable_subjects(store: Store) -> set[str]:
    """The labelled subjects that may be trained on."""
    return {case.subject for case in labelled_cases(store)} & set(split_of(store).train)


def draw_subjects(
    store: Store, seed: int, labels: int | None, fraction: float | None
) -> tuple[str, ...]:
    """The labelled subjects that cells train on, as `finetune` draws them.

    Args:
        store: with a split.
        seed: of the draw.
        labels: how many.
        fraction: instead of `labels`.

    Raises:
        UsageError: there are fewer.
    """
    labelled = trainable_subjects(store)
    split = split_of(store)
    split = dataclasses.replace(
        split, train=tuple(subject for subject in split.train if subject in labelled)
    )
    # an equal share of each grade, where there are no label images
    has_labels = any(case.has_label for case in store.cases)
    grades = {} if has_labels else subject_grades(store.cases)
    return splits.choose_subset(split, seed, labels, fraction, grades)


def check_leakage(store: Store, name: str, scans_seen: SeenScans, transductive: bool) -> int:
    """Refuse test scans that were seen in pre-training, by contents or subject.

    Args:
        store: has the split.
        name: of the encoder, or of the scans of a pre-training, for the message.
        scans_seen: the scans of the pre-training.
        transductive: allow it.

    Returns:
        How many test scans were seen.

    Raises:
        DataError: some were, and `transductive` is False.
    """
    leaks = find_leaks(store, split_of(store), scans_seen)
    if leaks.ids and not transductive:
        raise DataError(
            f"{name}: pre-training has seen {leaks}; {leaks.remedy_for_names}pre-train without "
            "them, or write `transductive: true` into the plan"
        )
    return len(leaks.ids)
