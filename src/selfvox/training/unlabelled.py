"""Unlabelled scans in a fine-tuning: their anatomies, worn by copies of the labelled scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from selfvox.data.preparation.build_store import build_store, find_scans
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, is_store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.registration.copies import Copies, CopyRequest, make_copies
from selfvox.registration.register import check_installed
from selfvox.settings.verbs import Finetune

COPY_SHARE = 0.75  # of the training crops


def unlabelled_copies(
    settings: Finetune,
    store: Store,
    split: Split,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
) -> Copies | None:
    """Copies of the labelled scans on the anatomies of the setting `unlabelled`.

    None without that setting, or where registration does not carry labels between these scans.

    Args:
        settings: of the verb.
        store: the labelled scans.
        split: who trains, validates and tests.
        training: the cases that train.
        validation: the cases that validate.

    Raises:
        DataError: the unlabelled scans cannot be used.
        UsageError: greedy is not installed.
        ResourceError: the disk is full.
    """
    if settings.unlabelled is None:
        return None
    check_installed()
    request = CopyRequest(
        store=store,
        training=training,
        validation=validation,
        unlabelled=_prepare(settings.unlabelled, settings, store),
        split=split,
        registrations=settings.registrations,
        seed=settings.seed,
        workers=settings.workers,
    )
    return make_copies(settings.out / "copies", request)


def _prepare(scans: Path, settings: Finetune, labelled: Store) -> Store:
    """The unlabelled scans, prepared by the recipe of the labelled ones; labels are ignored.

    Raises:
        DataError: they are prepared in another way already, or no scan can be used.
    """
    if is_store(scans):
        ready = open_store(scans)
        if not ready.recipe.is_equivalent(labelled.recipe):
            raise DataError(
                f"{scans}: was prepared in another way than the labelled scans; name the scans, "
                "not the store"
            )
        return ready
    out = settings.out / "unlabelled"
    dataset = find_scans(scans, out, settings)
    channels = len(dataset.channel_names)
    if channels != len(labelled.recipe.channel_names):
        raise DataError(
            f"{scans}: has {channels} channels where the labelled scans have "
            f"{len(labelled.recipe.channel_names)}; name scans with the same channels"
        )
    cases = tuple(dataclasses.replace(case, label=None, grade=None) for case in dataset.cases)
    return build_store(
        dataclasses.replace(dataset, cases=cases, classes=None, regions=None),
        out,
        settings,
        labelled.recipe,
    )
