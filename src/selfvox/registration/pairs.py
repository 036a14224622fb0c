"""Which labelled scan is registered to which unlabelled one, and which scans may not be used."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from selfvox.data.preparation.leakage import content_hashes
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.runs.progress import echo

# why unlabelled scans are left out, in the order in which the reasons are tried
HELD_OUT = "of test or validation subjects"
LABELLED = "of the labelled subjects themselves"
DUPLICATE = "with the contents of another one"


def usable_scans(
    unlabelled: Sequence[StoredCase], store: Store, split: Split
) -> tuple[list[StoredCase], Mapping[str, int]]:
    """The unlabelled scans that may be trained on, and how many are left out, by reason.

    A scan is recognised by its subject and by its contents: by `content_hashes`, since the prepared
    voxels stay the same if its file is compressed again, and the file if another median scales the
    voxels; and by its coarse picture if it is a resampled copy. Validation subjects are held out
    too: their Dice would no longer be that of unseen anatomies.

    Args:
        unlabelled: prepared scans, by the recipe of the labelled ones.
        store: the labelled scans and all others of their data set.
        split: who trains, validates and tests.
    """
    held_out = {*split.validation, *split.test}
    labelled = set(split.train)
    # by contents too: a scan may have another name among the unlabelled ones
    subjects_by_hash: dict[str, set[str]] = defaultdict(set)
    for case in store.cases:
        for digest in content_hashes(case):
            subjects_by_hash[digest].add(case.subject)
    pictures = CoarsePictures(case.coarse_picture for case in store.cases)
    counts = dict.fromkeys((HELD_OUT, LABELLED, DUPLICATE), 0)
    usable: list[StoredCase] = []
    used_hashes: set[str] = set()
    for case in unlabelled:
        hashes = content_hashes(case)
        subjects = {case.subject}.union(*(subjects_by_hash[digest] for digest in hashes))
        copy = pictures.find(case.coarse_picture)
        if copy is not None:
            subjects.add(store.cases[copy].subject)
        if subjects & held_out:
            counts[HELD_OUT] += 1
        elif subjects & labelled:
            counts[LABELLED] += 1
        elif hashes & used_hashes:
            counts[DUPLICATE] += 1
        else:
            usable.append(case)
            used_hashes |= hashes
    return usable, {reason: count for reason, count in counts.items() if count}


def keep_usable(unlabelled: Store, store: Store, split: Split) -> Store:
    """The unlabelled scans that may be used; prints how many are left out, and why.

    Raises:
        DataError: there is none.
    """
    usable, left_out = usable_scans(unlabelled.cases, store, split)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    total = len(unlabelled.cases)
    echo(f"{len(usable)} of {total} unlabelled scans are used{f'; not {reasons}' * bool(reasons)}")
    if not usable:
        raise DataError(
            f"{unlabelled.path}: no unlabelled scan is left; name other scans, or leave "
            "--unlabelled out"
        )
    return dataclasses.replace(unlabelled, cases=tuple(usable))


def choose_pairs(
    labelled: Sequence[StoredCase], unlabelled: Sequence[StoredCase], most: int, seed: int
) -> list[tuple[StoredCase, StoredCase]]:
    """At most `most` pairs of a labelled and an unlabelled scan, all different.

    Every scan of either kind has a partner before one has a second, as far as `most` allows.

    Args:
        labelled: scans to move.
        unlabelled: scans to move them to.
        most: pairs.
        seed: of the order of the unlabelled scans.
    """
    order = np.random.default_rng((seed, 3)).permutation(len(unlabelled))
    # after as many pairs both kinds are back at the first, and one of them is shifted by one
    period = math.lcm(len(labelled), len(unlabelled))
    pairs = []
    for number in range(min(most, len(labelled) * len(unlabelled))):
        place = (number + number // period) % len(unlabelled)
        pairs.append((labelled[number % len(labelled)], unlabelled[order[place]]))
    return pairs
