"""Which scans and splits a study was done with, so that it is not continued with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data.naming import printable
from selfvox.data.preparation.store import Store, hash_texts, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.runs.typed_json import parse, read_checked, write_checked

FORMAT = 1
FILE = "data.json"
_STORES = ("store", "scans/*", "labelled/*", "unlabelled/*")
_FOLDS = ("store-folds/*", "labelled/*/*")


def fingerprint(out: Path) -> dict[str, Any]:
    """A digest of each case of every store of a study, and of the split of every store and fold."""
    cases = {}
    splits: dict[str, str] = {}
    for name, store in _open_stores(out, _STORES):
        cases[name] = {case.id: _case_digest(case) for case in store.cases}
        _add_split(splits, name, store)
    # a fold's store has the cases of the whole one
    for name, store in _open_stores(out, _FOLDS):
        _add_split(splits, name, store)
    return {"format": FORMAT, "cases": cases, "splits": splits}


def _open_stores(out: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Store]]:
    """The stores in these folders, by name within the study."""
    for pattern in patterns:
        for path in sorted(file.parent for file in out.glob(f"{pattern}/manifest.json")):
            try:
                store = open_store(path)
            except DataError:  # unfinished, so nothing was done with it
                continue
            yield path.relative_to(out).as_posix(), store


def _case_digest(case: StoredCase) -> str:
    """Of contents, subject, grade and label."""
    return hash_texts(case.image_hash, case.subject, str(case.grade), case.sha256.get("labels", ""))


def _add_split(splits: dict[str, str], name: str, store: Store) -> None:
    split = store.split()
    if split is not None:
        subjects = {case.subject for case in store.cases}
        groups = (split.train, split.validation, split.test)
        members = [sorted(subjects.intersection(group)) for group in groups]
        splits[name] = hash_texts(json.dumps(members))


@dataclass(frozen=True)
class _Fingerprint:
    """What the file contains, by store."""

    cases: dict[str, dict[str, str]]  # a hash by case id
    splits: dict[str, str]


def recorded(out: Path) -> dict[str, Any]:
    """The fingerprint that was recorded when the study began; without a record, that of now."""
    file = out / FILE
    if not file.exists():
        return fingerprint(out)
    entries = read_checked(file)
    parse(_Fingerprint, entries, str(file))
    return entries


def forget(out: Path, *folders: str) -> None:
    """Remove stores, or folders of stores, that no run was made from, and their fingerprints."""
    entries = recorded(out)
    for folder in folders:
        shutil.rmtree(out / folder, ignore_errors=True)
        for kind in ("cases", "splits"):
            entries[kind] = {
                name: value
                for name, value in entries[kind].items()
                if not f"{name}/".startswith(f"{folder}/")
            }
    write_checked(out / FILE, entries)


def record(out: Path, previous: Mapping[str, Any]) -> None:
    """Record the fingerprint of the stores as they are now.

    Args:
        out: the study's folder.
        previous: what `recorded` returned before the stores were brought up to date.

    Raises:
        DataError: they differ, and something was done with the previous ones.
    """
    current = fingerprint(out)
    if any(out.glob("cells/*/*/done.json")) or any(out.glob("pretrain/*/done.json")):
        _check_cases(out, previous["cases"], current["cases"])
        _check_splits(out, previous["splits"], current["splits"])
        for kind in ("cases", "splits"):
            # stores of a method that is no longer in the plan stay recorded
            current[kind] = {**previous[kind], **current[kind]}
    write_checked(out / FILE, current)


_REMEDY = "restore the previous scans, or name another --out"


def _check_cases(
    out: Path,
    previous: Mapping[str, Mapping[str, str]],
    current: Mapping[str, Mapping[str, str]],
) -> None:
    for store in previous.keys() & current.keys():
        old = previous[store]
        new = current[store]
        changed = [case for case in {**old, **new} if old.get(case) != new.get(case)]
        if not changed:
            continue
        first = changed[0]
        if first not in old:
            change = "is new"
        elif first not in new:
            change = "is gone"
        else:
            change = "has changed"
        raise DataError(
            f"{out / store}: these are not the scans that the study began with: {len(changed)} "
            f"differ ({printable(first)} {change}); {_REMEDY}"
        )


def _check_splits(out: Path, previous: Mapping[str, str], current: Mapping[str, str]) -> None:
    for store in previous.keys() & current.keys():
        if previous[store] != current[store]:
            raise DataError(
                f"{out / store}: the split is not the one that the study began with; {_REMEDY}"
            )
