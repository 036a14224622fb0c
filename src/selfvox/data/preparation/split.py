"""Which subjects train, validate and test, folds of them, and nested subsets of those that train; saved as a file.

Subjects are ordered by a hash of the seed and their name, so the order does not depend on how they were listed, on the
machine or on the version of any library. Where their classes are given, every part has about the same share of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.formats import strict_json
from selfvox.data.naming import natural_key, printable
from selfvox.errors import DataError, UsageError
from selfvox.runs import atomic_files

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Subjects by use; no subject has two.

    Raises:
        DataError: a subject stands twice.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        home: dict[str, str] = {}
        for part in _PARTS:
            for subject in getattr(self, part):
                if subject in home:
                    both = (
                        f"twice in {part}"
                        if home[subject] == part
                        else f"in {home[subject]} and in {part}"
                    )
                    raise DataError(
                        f"subject {printable(subject)} is {both}; a subject has one use only"
                    )
                home[subject] = part


def make_split(
    subjects: Iterable[str],
    test: int,
    validation: int,
    seed: int,
    classes: Mapping[str, int] | None = None,
) -> Split:
    """Set `test` and `validation` subjects aside and train on the rest; a subject's cases stay together.

    With one seed, the test subjects are the same for any number of validation subjects.

    Raises:
        UsageError: no subject would be left to train on.
    """
    ordered = _shuffled(set(subjects), f"split {seed}", classes)
    if test < 0 or validation < 0:
        raise UsageError(
            f"{test} subjects for testing and {validation} for validation cannot be; give 0 or more"
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
    """Deal subjects out to `count` folds, as equal in number, in all and of each class, as can be.

    Args:
        classes: class by subject; one for all where they have none.
        count: how many folds.
        seed: of the order in which they are dealt.

    Raises:
        UsageError: there are fewer subjects than folds, or fewer than two folds.
    """
    if not 2 <= count <= len(classes):
        raise UsageError(
            f"{count} folds of {len(classes)} subjects cannot be; ask for 2 to {len(classes)}"
        )
    by_class = sorted(_shuffled(classes, f"folds {seed}"), key=lambda subject: classes[subject])
    return [_sorted(by_class[first::count]) for first in range(count)]


def choose_subset(
    split: Split,
    seed: int,
    count: int | None = None,
    fraction: float | None = None,
    classes: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Some of the training subjects, or all; of one seed, a larger subset contains a smaller one.

    A fraction is rounded to whole subjects, at least one. `classes`: class by subject, to keep the shares of.

    Raises:
        UsageError: both are given, or they ask for none or for more than there are.
    """
    there = len(split.train)
    if count is not None and fraction is not None:
        raise UsageError("give a number of labels or a fraction, not both")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise UsageError(
                f"a fraction of {fraction} labels cannot be; give more than 0 and at most 1"
            )
        count = max(1, round(fraction * there))
    if count is None:
        count = there
    if not 1 <= count <= there:
        aside = f" beside {len(split.validation)} for validation and {len(split.test)} for testing"
        raise UsageError(
            f"{count} labelled subjects asked for, but there are {there} to train on{aside}; give 1 to {there}"
        )
    return _sorted(_shuffled(split.train, f"subset {seed}", classes)[:count])


def rename_subjects(split: Split, names: Iterable[tuple[str, str]]) -> Split:
    """The split where scans have changed hands: who has them now has the part of who had them.

    Args:
        split: with the names as they were.
        names: of each scan, whose it was and whose it is.

    Raises:
        DataError: a subject would have two parts.
    """
    names = list(names)
    home = {subject: part for part in _PARTS for subject in getattr(split, part)}
    parts: dict[str, set[str]] = defaultdict(set)
    for old, new in names:
        parts[new] |= {home[subject] for subject in (old, new) if subject in home}
    for subject, several in sorted(parts.items()):
        if len(several) > 1:
            both = " and ".join(part for part in _PARTS if part in several)
            raise DataError(
                f"subject {printable(subject)} now has scans that the split puts in {both}; "
                "make a new split (another --out)"
            )
    kept = home.keys() - ({old for old, _ in names} - parts.keys())
    now = {subject: home[subject] for subject in kept} | {
        subject: part for subject, each in parts.items() for part in each
    }
    found = {part: _sorted(subject for subject in now if now[subject] == part) for part in _PARTS}
    return Split(**found, seed=split.seed)


def write_split(split: Split, path: Path) -> None:
    """Save as JSON, with a checksum that tells an accidental change."""
    content = dataclasses.asdict(split)
    atomic_files.write_json(path, {**content, "sha256": _checksum(split)})


def read_split(path: Path) -> Split:
    """Read what `write` saved; a split written by hand leaves `sha256` out.

    Raises:
        DataError: not a split, changed since it was saved, or a subject has two uses; in one line.
    """
    content = strict_json.read_json(path)
    fields = {*_PARTS, "seed"}
    if not isinstance(content, dict) or not fields <= set(content) <= fields | {"sha256"}:
        raise DataError(
            f"{printable(path)}: not a split; that is an object of train, validation, test, seed and sha256"
        )
    for part in _PARTS:
        if not isinstance(content[part], list) or not all(
            isinstance(subject, str) for subject in content[part]
        ):
            raise DataError(
                f"{printable(path)}: '{part}' is not a list of subjects; write [\"subject\", ...]"
            )
    if type(content["seed"]) is not int:
        raise DataError(f"{printable(path)}: 'seed' is not a whole number; write one")
    try:
        split = Split(**{part: tuple(content[part]) for part in _PARTS}, seed=content["seed"])
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None
    if "sha256" in content and content["sha256"] != _checksum(split):
        raise DataError(
            f"{printable(path)}: changed since it was saved; restore it, or remove 'sha256' to keep the change"
        )
    return split


def read_split_if_present(path: Path) -> Split | None:
    """The split that lies at `path`; None where there is none."""
    return read_split(path) if path.exists() else None


def _shuffled(
    subjects: Iterable[str], salt: str, classes: Mapping[str, int] | None = None
) -> list[str]:
    """By hash; where classes are given, so that every beginning of the list has about the shares of the whole."""
    ordered = sorted(
        subjects, key=lambda subject: hashlib.sha256(f"{salt} {subject}".encode()).digest()
    )
    if not classes:
        return ordered
    groups: dict[int | None, list[str]] = defaultdict(list)
    for subject in ordered:
        groups[classes.get(subject)].append(subject)
    place = {
        each: (rank + 0.5) / len(group)
        for group in groups.values()
        for rank, each in enumerate(group)
    }
    return sorted(ordered, key=lambda subject: place[subject])  # stable: ties stay as hashed


def _sorted(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(subjects, key=natural_key))


def _checksum(split: Split) -> str:
    text = json.dumps(dataclasses.asdict(split), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
