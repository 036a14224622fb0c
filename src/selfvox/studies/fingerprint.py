"""Which scans and splits a study's work was done with, so that none goes on with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from selfvox.data.formats import strict_json
from selfvox.data.naming import printable
from selfvox.data.preparation.store import hash_texts, open_store
from selfvox.errors import DataError
from selfvox.runs import atomic_files

FORMAT = 1
FILE = "data.json"
# a fold's store holds the cases of the whole one
_STORES = ("store", "scans/*", "labelled/*")
_FOLDS = ("store-folds/*", "labelled/*/*")


def found(out: Path) -> dict[str, Any]:
    """Of every store of a study: a digest of each case (contents, subject, grade, label), and one of its split."""
    cases, dealt = {}, {}
    for pattern in (*_STORES, *_FOLDS):
        for path in sorted(each.parent for each in out.glob(f"{pattern}/manifest.json")):
            name = path.relative_to(out).as_posix()
            try:
                store = open_store(path)
            except DataError:  # unfinished, so that nothing was done with it
                continue
            if pattern in _STORES:
                cases[name] = {
                    case.id: hash_texts(
                        case.image_hash,
                        case.subject,
                        str(case.grade),
                        case.sha256.get("labels", ""),
                    )
                    for case in store.cases
                }
            if (split := store.split()) is not None:
                there = {case.subject for case in store.cases}
                parts = (split.train, split.validation, split.test)
                dealt[name] = hash_texts(
                    json.dumps([sorted(there.intersection(part)) for part in parts])
                )
    return {"format": FORMAT, "cases": cases, "splits": dealt}


def before(out: Path) -> dict[str, Any]:
    """What was kept when the study began; where nothing was, what its stores are now."""
    file = out / FILE
    return strict_json.read_json(file) if file.exists() else found(out)


def forget(out: Path, *folders: str) -> None:
    """Remove stores, or folders of stores, of which nothing was made, and what was kept of them."""
    kept = before(out)
    for folder in folders:
        shutil.rmtree(out / folder, ignore_errors=True)
        for part in ("cases", "splits"):
            kept[part] = {
                name: value
                for name, value in kept[part].items()
                if not f"{name}/".startswith(f"{folder}/")
            }
    atomic_files.write_json(out / FILE, kept)


def keep(out: Path, was: dict[str, Any]) -> None:
    """Keep what the stores are now; `was`: what `before` said when they had not yet been brought up to date.

    Raises:
        DataError: they differ, and something was done with what was.
    """
    now = found(out)
    if any(out.glob("cells/*/*/done.json")) or any(out.glob("pretrain/*/done.json")):
        _check(out, was, now)
        # of a method that is no longer in the plan
        now = {**now, **{name: {**was[name], **now[name]} for name in ("cases", "splits")}}
    atomic_files.write_json(out / FILE, now)


def _check(out: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    remedy = "put back what was there, or name another --out"
    for store in was["cases"].keys() & now["cases"].keys():
        old, new = was["cases"][store], now["cases"][store]
        changed = [case for case in {**old, **new} if old.get(case) != new.get(case)]
        if changed:
            first = changed[0]
            what = "is new" if first not in old else "is gone" if first not in new else "is another"
            raise DataError(
                f"{out / store}: the scans are not those that the study began with: {len(changed)} differ "
                f"({printable(first)} {what}); {remedy}"
            )
    for store in was["splits"].keys() & now["splits"].keys():
        if was["splits"][store] != now["splits"][store]:
            raise DataError(
                f"{out / store}: others train and test than when the study began; {remedy}"
            )
