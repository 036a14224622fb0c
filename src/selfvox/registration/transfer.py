"""How well registration carries labels between the labelled scans: it decides about the copies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.ops.metrics import nan_mean
from selfvox.registration.registered_pairs import PairJob, RegisteredPair, register_pairs
from selfvox.runs.progress import echo

CHECKS = 6  # registrations at most: they cost as much as those that make copies
# Dice of carried labels below which the scans share no anatomy. Structures that everybody has
# reached .74 and .77 in two data sets; lesions, each in another place, should hardly overlap (not
# measured), so that a limit in between need not be exact
LEAST_DICE = 0.3


def carries_labels(
    folder: Path,
    scans: Store,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
    workers: int,
) -> bool:
    """Whether registration finds the anatomy again in other labelled scans; prints the result.

    Each training scan is registered to the next one; a single one to the validation scans. True
    where nothing can be checked.

    Args:
        folder: of the pairs.
        scans: the labelled scans.
        training: those that train.
        validation: those that validate.
        workers: processes; 0: one per core.

    Raises:
        ResourceError: the disk is full.
        UsageError: greedy is not installed.
    """
    pairs = _pairs(training, validation)
    if not pairs:
        echo(
            "registration cannot be checked with a single labelled scan, so nothing shows whether "
            "copies help: look at their picture, and label a second scan if you can"
        )
        return True
    classes = label_classes(scans)
    jobs = [
        PairJob(
            folder=folder,
            moving_store=only(scans, moving),
            moving=moving,
            fixed_store=only(scans, fixed),
            fixed=fixed,
            classes=tuple(classes),
        )
        for moving, fixed in pairs
    ]
    registered = register_pairs(jobs, workers, "checking the registration")
    dice = class_dice(registered, pairs, classes)
    mean = nan_mean(dice.values())
    if math.isnan(mean):
        echo("registration cannot be checked: no two of the compared scans share a class")
        return True
    parts = ", ".join(f"{name} {value:.2f}" for name, value in dice.items())
    echo(
        f"registration between {len(pairs)} pairs of labelled scans: carried labels have a Dice of "
        f"{mean:.2f} ({parts})"
    )
    if mean >= LEAST_DICE:
        return True
    echo(
        f"below {LEAST_DICE} the scans do not share the labelled structures, as is usual for "
        "lesions: copies would mislead"
    )
    return False


def class_dice(
    registered: Sequence[RegisteredPair],
    pairs: Sequence[tuple[StoredCase, StoredCase]],
    classes: Mapping[int, str],
) -> dict[str, float]:
    """Mean Dice of the carried labels by class name, over the pairs of which both scans have it.

    A class that one scan lacks says nothing about the registration: absent from both, its Dice is
    1. A failed registration counts as 0; without any pair it is NaN.

    Args:
        registered: the registrations.
        pairs: their moving and fixed scans, in the same order.
        classes: names by value.
    """
    scores = {}
    for number, (value, name) in enumerate(classes.items()):
        values = []
        for pair, (moving, fixed) in zip(registered, pairs, strict=True):
            if value not in moving.label_values or value not in fixed.label_values:
                continue
            # resampling may have removed a small structure
            if not pair.dice or pair.volumes[number] > 0:
                values.append(pair.dice[number] if pair.dice else 0.0)
        scores[name] = statistics.fmean(values) if values else math.nan
    return scores


def label_classes(scans: Store) -> dict[int, str]:
    """The classes above 0, in the order of their values."""
    return {value: name for value, name in sorted((scans.classes or {}).items()) if value}


def only(scans: Store, case: StoredCase) -> Store:
    """The store with one case alone: a worker process gets it."""
    return Store(scans.path.absolute(), scans.recipe, scans.classes, (case,))


def _pairs(
    training: Sequence[StoredCase], validation: Sequence[StoredCase]
) -> list[tuple[StoredCase, StoredCase]]:
    """Pairs of different subjects to check, evenly taken from all that there are."""
    candidates = [
        (moving, fixed)
        for shift in range(1, len(training))
        for moving, fixed in zip(training, np.roll(np.array(training, object), -shift), strict=True)
        if moving.subject != fixed.subject
    ] or [
        (moving, fixed)
        for moving in training
        for fixed in validation
        if moving.subject != fixed.subject
    ]
    chosen = np.linspace(0, len(candidates) - 1, min(CHECKS, len(candidates))).round().astype(int)
    return [candidates[number] for number in chosen]
