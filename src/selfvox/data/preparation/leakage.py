"""Leakage: which subjects and scans a network was trained on, to find them among test scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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


class Leaks(NamedTuple):
    """The ids of test scans that were seen in training, by what tells so."""

    by_contents: list[str]  # the same scans, or resampled copies
    by_subject: list[str]  # only the name of the subject is the same
    total: int  # of all test scans

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return self.by_contents + self.by_subject

    def __str__(self) -> str:
        kinds = []
        if self.by_contents:
            kinds.append(f"{len(self.by_contents)} by contents ({self.by_contents[0]} first)")
        if self.by_subject:
            kinds.append(
                f"{len(self.by_subject)} by the name of the subject ({self.by_subject[0]} first)"
            )
        return f"{len(self.ids)} of {self.total} test scans: {' and '.join(kinds)}"

    @property
    def remedy_for_names(self) -> str:
        """What helps where other people have the names of the test subjects."""
        if not self.by_subject:
            return ""
        return "if these are different people, name them in a table with a column `subject`, or "


def find_leaks(store: Store, split: Split, training: SeenScans) -> Leaks:
    """The test scans that were seen in training, by their contents or else by their subjects.

    A resampled copy counts too: its coarse picture is nearly the same.
    """
    subjects = set(training["subjects"])
    contents = set(training["image_hashes"])
    pictures = CoarsePictures(training.get("coarse_pictures", ()))
    test = cases_of_subjects(store.cases, split.test)
    by_contents = []
    by_subject = []
    for case in test:
        is_copy = pictures.find(case.coarse_picture) is not None
        if is_copy or content_hashes(case) & contents:
            by_contents.append(case.id)
        elif case.subject in subjects:
            by_subject.append(case.id)
    return Leaks(by_contents, by_subject, len(test))
