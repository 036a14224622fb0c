"""Whose scans a network was trained on: kept in its card, so that a leak into a test can be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, StoredCase

SeenScans = Mapping[str, Sequence[str]]  # `subjects`, and `image_hashes` of their scans' contents


def seen_scans(
    cases: Sequence[StoredCase], before: SeenScans | None = None
) -> dict[str, list[str]]:
    """The subjects and contents of these cases, and of what was seen before."""
    found = {
        "subjects": {case.subject for case in cases},
        "image_hashes": {case.image_hash for case in cases},
    }
    return {name: sorted(each.union((before or {}).get(name, ()))) for name, each in found.items()}


def find_leaks(store: Store, split: Split, known: SeenScans) -> tuple[list[str], int]:
    """The ids of the test scans that were seen, by their contents or their subjects; and how many there are."""
    held_out, contents, subjects = (
        set(split.test),
        set(known["image_hashes"]),
        set(known["subjects"]),
    )
    test = [case for case in store.cases if case.subject in held_out]
    return [
        case.id for case in test if case.image_hash in contents or case.subject in subjects
    ], len(test)
