"""Scans or a store: a store is opened, scans are listed and prepared into a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from selfvox.data.preparation.build_store import build_store
from selfvox.data.preparation.choose_recipe import check_options
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.sources import Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.runs.progress import echo
from selfvox.settings.verbs import PreparationSettings


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


def count_channels(scans: Path, source: str) -> int:
    """Number of channels of scans, or of the scans in a store."""
    if is_store(scans):
        return len(open_store(scans).recipe.channel_names)
    return len(find_dataset(scans, source).channel_names)
