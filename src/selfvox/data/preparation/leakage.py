"""Leakage: which subjects and scans a network was trained on, to find them among test scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfvox.data.preparation.case_table import cases_of_subjects, subjects_of, texts
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase

# `subjects`, and of their scans' contents `image_hashes` and `coarse_pictures`, which are missing
# in older cards
SeenScans = Mapping[str, Sequence[str]]


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
        "subjects": set(subjects_of(cases)),
        "image_hashes": {*texts(cases, "image_hash"), *texts(cases, "array_hash")},
        "coarse_pictures": set(filter(None, texts(cases, "coarse_picture"))),
    }
    for name, values in (earlier or {}).items():
        joined.get(name, set()).update(values)
    # of stores and cards of older versions there are no pictures
    required = ("subjects", "image_hashes")
    return {name: sorted(joined[name]) for name in joined if joined[name] or name in required}


def find_leaks(store: Store, split: Split, training: SeenScans) -> tuple[list[str], int]:
    """The test scans that were seen in training, by their contents or their subjects.

    A resampled copy counts too: its coarse picture is nearly the same.

    Returns:
        Their ids, and the number of all test scans.
    """
    subjects = set(training["subjects"])
    contents = set(training["image_hashes"])
    pictures = CoarsePictures(training.get("coarse_pictures", ()))
    test = cases_of_subjects(store.cases, split.test)
    leaks = [
        case.id
        for case in test
        if case.subject in subjects
        or content_hashes(case) & contents
        or pictures.find(case.coarse_picture) is not None
    ]
    return leaks, len(test)
