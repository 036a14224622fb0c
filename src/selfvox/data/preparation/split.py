"""Splits of the subjects into training, validation and test, their folds and nested subsets.

Subjects are ordered by a hash of the seed and their name, so the order does not depend on how they
were listed, on the machine or on the version of any library. If their classes are given, every part
has about the same share of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.naming import natural_key, printable
from selfvox.errors import DataError, UsageError
from selfvox.runs import atomic_files, strict_json

_USES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Subjects by use; no subject has two uses.

    Raises:
        DataError: a subject is listed twice.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        uses: dict[str, str] = {}
        for use in _USES:
            for subject in getattr(self, use):
                if subject in uses:
                    first = uses[subject]
                    places = f"twice in {use}" if first == use else f"in {first} and in {use}"
                    raise DataError(
                        f"subject {printable(subject)} is {places}; a subject has one use only"
                    )
                uses[subject] = use


def default_validation(subjects: int) -> int:
    """How many of the labelled subjects validate where nobody says: a fifth, rounded down.

    Of fewer than five all train: each gains more as a label than as a score.
    """
    return subjects // 5


def make_split(
    subjects: Iterable[str],
    test: int,
    validation: int,
    seed: int,
    classes: Mapping[str, int] | None = None,
) -> Split:
    """Set `test` and `validation` subjects aside and train on the rest.

    With one seed, the test subjects are the same for any number of validation subjects.

    Args:
        subjects: in any order; a subject's cases stay together.
        test: number of test subjects.
        validation: number of validation subjects.
        seed: of the order.
        classes: class by subject, to give every part its share of each.

    Raises:
        UsageError: a number is negative, or no subject would be left to train on.
    """
    ordered = _shuffled(set(subjects), f"split {seed}", classes)
    if test < 0 or validation < 0:
        raise UsageError(
            f"{test} subjects for testing and {validation} for validation are impossible; "
            "give 0 or more"
        )
    if test + validation >= len(ordered):
        aside = f"{test} for testing and {validation} for validation"
        raise UsageError(
            f"{aside} leave none of {len(ordered)} subjects to train on; set fewer aside"
        )
    return Split(
        train=_sorted(ordered[test + validation :]),
        validation=_sorted(ordered[test : test + validation]),
        test=_sorted(ordered[:test]),
        seed=seed,
    )


def make_folds(classes: Mapping[str, int], count: int, seed: int) -> list[tuple[str, ...]]:
    """Divide subjects into `count` folds with equal shares of each class, as far as possible.

    Args:
        classes: class by subject; the same for all if there are none.
        count: number of folds.
        seed: of the order in which subjects are dealt to the folds.

    Raises:
        UsageError: there are fewer subjects than folds, or fewer than two folds.
    """
    if not 2 <= count <= len(classes):
        raise UsageError(
            f"{count} folds of {len(classes)} subjects are impossible; use 2 to {len(classes)}"
        )
    # dealt in turn: two folds differ by at most one subject of a class
    by_class = sorted(_shuffled(classes, f"folds {seed}"), key=lambda subject: classes[subject])
    return [_sorted(by_class[first::count]) for first in range(count)]


def choose_subset(
    split: Split,
    seed: int,
    count: int | None = None,
    fraction: float | None = None,
    classes: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Some of the training subjects; with one seed, a larger subset contains a smaller one.

    Args:
        split: of the subjects.
        seed: of the order.
        count: how many; default: all.
        fraction: instead of `count`; rounded to whole subjects, at least one.
        classes: class by subject, to keep the share of each.

    Raises:
        UsageError: both are given, or they give no subject or more than there are.
    """
    available = len(split.train)
    if count is not None and fraction is not None:
        raise UsageError("give a number of labels or a fraction, not both")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise UsageError(
                f"a fraction of {fraction} labels is impossible; give more than 0 and at most 1"
            )
        count = max(1, round(fraction * available))
    if count is None:
        count = available
    if not 1 <= count <= available:
        raise UsageError(
            f"{count} labelled subjects requested, but there are {available} to train on, besides "
            f"{len(split.validation)} for validation and {len(split.test)} for testing; give 1 to "
            f"{available}"
        )
    return _sorted(_shuffled(split.train, f"subset {seed}", classes)[:count])


def rename_subjects(split: Split, names: Iterable[tuple[str, str]]) -> Split:
    """The split after subjects were renamed: each scan keeps its use.

    Args:
        split: with the old names.
        names: for each scan, the old and the new name of its subject.

    Raises:
        DataError: a subject would have two uses.
    """
    names = list(names)
    old_uses = {subject: use for use in _USES for subject in getattr(split, use)}
    uses: dict[str, set[str]] = defaultdict(set)
    for old, new in names:
        uses[new] |= {old_uses[subject] for subject in (old, new) if subject in old_uses}
    for subject, several in sorted(uses.items()):
        if len(several) > 1:
            both_uses = " and ".join(use for use in _USES if use in several)
            raise DataError(
                f"subject {printable(subject)} now has scans that the split puts in {both_uses}; "
                "make a new split (another --out)"
            )
    # a subject that has lost all its scans to others leaves the split
    vanished = {old for old, _ in names} - uses.keys()
    new_uses = {subject: use for subject, use in old_uses.items() if subject not in vanished}
    for subject, single in uses.items():
        for use in single:
            new_uses[subject] = use
    members = {
        use: _sorted(subject for subject in new_uses if new_uses[subject] == use) for use in _USES
    }
    return Split(**members, seed=split.seed)


def write_split(split: Split, path: Path) -> None:
    """Save as JSON, with a checksum that reveals an accidental change."""
    content = dataclasses.asdict(split)
    atomic_files.write_json(path, {**content, "sha256": _checksum(split)})


def read_split(path: Path) -> Split:
    """Read a saved split; one that is written by hand leaves `sha256` out.

    Raises:
        DataError: not a split, changed since it was saved, or a subject has two uses.
    """
    content = strict_json.read_json(path)
    fields = {*_USES, "seed"}
    if not isinstance(content, dict) or not fields <= set(content) <= fields | {"sha256"}:
        raise DataError(
            f"{printable(path)}: not a split; that is an object of train, validation, test, seed "
            "and sha256"
        )
    for use in _USES:
        subjects = content[use]
        if not isinstance(subjects, list) or not all(isinstance(name, str) for name in subjects):
            raise DataError(
                f"{printable(path)}: '{use}' is not a list of subjects; write [\"subject\", ...]"
            )
    if type(content["seed"]) is not int:
        raise DataError(f"{printable(path)}: 'seed' is not a whole number; write one")
    try:
        split = Split(**{use: tuple(content[use]) for use in _USES}, seed=content["seed"])
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None
    if "sha256" in content and content["sha256"] != _checksum(split):
        raise DataError(
            f"{printable(path)}: changed since it was saved; restore it, or remove 'sha256' to "
            "keep the change"
        )
    return split


def read_split_if_present(path: Path) -> Split | None:
    """The split in the file `path`; None if there is no such file."""
    return read_split(path) if path.exists() else None


def _shuffled(
    subjects: Iterable[str], salt: str, classes: Mapping[str, int] | None = None
) -> list[str]:
    """Subjects in the order of their hash.

    If classes are given, every beginning of the list has about the same share of each class.
    """
    ordered = sorted(
        subjects, key=lambda subject: hashlib.sha256(f"{salt} {subject}".encode()).digest()
    )
    if not classes:
        return ordered
    groups: dict[int | None, list[str]] = defaultdict(list)
    for subject in ordered:
        groups[classes.get(subject)].append(subject)
    # each class is spread evenly over the list: its members get equidistant places from 0 to 1
    places = {}
    for group in groups.values():
        for rank, subject in enumerate(group):
            places[subject] = (rank + 0.5) / len(group)
    return sorted(ordered, key=lambda subject: places[subject])  # stable: ties keep their order


def _sorted(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(subjects, key=natural_key))


def _checksum(split: Split) -> str:
    text = json.dumps(dataclasses.asdict(split), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
