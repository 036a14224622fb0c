"""Leakage: which subjects and scans a network was trained on, to find them among test scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase

SeenScans = Mapping[str, Sequence[str]]  # `subjects`, and `image_hashes` of their scans' contents


def content_hashes(case: StoredCase) -> set[str]:
    """What a scan is recognised by, whatever its name: its files, and its prepared voxels.

    The voxels are in canonical orientation and stay the same if the file is compressed again,
    turned or converted, as long as the recipe is the same.
    """
    return {case.image_hash, case.sha256["images"]}


def seen_scans(
    cases: Sequence[StoredCase], earlier: SeenScans | None = None
) -> dict[str, list[str]]:
    """The subjects and contents of these cases, joined with those of an earlier training."""
    joined = {
        "subjects": {case.subject for case in cases},
        "image_hashes": {digest for case in cases for digest in content_hashes(case)},
    }
    if earlier is None:
        earlier = {}
    return {name: sorted(values.union(earlier.get(name, ()))) for name, values in joined.items()}


def find_leaks(store: Store, split: Split, training: SeenScans) -> tuple[list[str], int]:
    """The test scans that were seen in training, by their contents or their subjects.

    Returns:
        Their ids, and the number of all test scans.
    """
    test_subjects = set(split.test)
    subjects = set(training["subjects"])
    contents = set(training["image_hashes"])
    test = [case for case in store.cases if case.subject in test_subjects]
    leaks = [
        case.id for case in test if case.subject in subjects or content_hashes(case) & contents
    ]
    return leaks, len(test)
