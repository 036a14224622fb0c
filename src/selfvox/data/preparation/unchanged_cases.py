"""Which cases of a store can be kept: their files are unchanged, and their arrays undamaged."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data.preparation import store
from selfvox.data.preparation.case_columns import FILE
from selfvox.data.preparation.case_table import CaseTable
from selfvox.data.preparation.manifest import read_columns
from selfvox.data.preparation.prepare_case import file_states, request_hash
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.runs.progress import echo, progress_bar


@dataclass(frozen=True)
class Entries:
    """The stored cases of a store."""

    by_id: dict[str, StoredCase]
    is_listed: bool  # the table of the cases says of them what their JSON does


def read_entries(
    out: Path, case_ids: Collection[str], manifest: Mapping[str, Any] | None
) -> Entries:
    """The stored cases among these ids.

    They are those with a JSON. What it says is taken from the table of the cases, if it is not
    younger than the table: to read 100 000 of them takes minutes.

    Args:
        out: folder of the store.
        case_ids: of the cases.
        manifest: of the store; None: there is none.
    """
    table = None if manifest is None else _read_table(out, manifest)
    rows = {} if table is None else {name: row for row, name in enumerate(table.texts("id"))}
    written_ns = 0 if table is None else (out / FILE).stat().st_mtime_ns
    entries = {}
    is_listed = True
    for case_id in case_ids:
        row = rows.get(case_id)
        entry: StoredCase | None
        if table is not None and row is not None and _is_older(out, case_id, written_ns):
            entry = table[row]
        else:
            is_listed = False
            entry = store.read_entry(out, case_id)
        if entry is not None:
            entries[case_id] = entry
    return Entries(entries, is_listed)


def _read_table(out: Path, manifest: Mapping[str, Any]) -> CaseTable | None:
    """The table of the cases; None where it is not finished, or damaged and made again."""
    try:
        axes = Recipe.from_dict(manifest["recipe"]).spatial_dims
        columns = read_columns(out, manifest, axes)
    except (DataError, TypeError, ValueError) as error:
        echo(f"{str(error).partition(';')[0]}; it is made again")
        return None
    return None if columns is None else CaseTable(columns)


def _is_older(out: Path, case_id: str, time_ns: int) -> bool:
    """Whether the JSON of a case is there, and was not written after this time."""
    try:
        return (out / "cases" / f"{case_id}.json").stat().st_mtime_ns <= time_ns
    except OSError:
        return False


def find_unchanged_cases(
    cases: Sequence[Case],
    out: Path,
    entries: Mapping[str, StoredCase],
    recipe_hash: str,
    check: bool,
) -> dict[str, StoredCase]:
    """The cases with unchanged source files (size and time) and undamaged arrays, by id.

    Arrays are undamaged if their size and time are those they were written with, and nothing is
    to be checked, or else if their contents are.

    Args:
        cases: of the data set.
        out: folder of the store.
        entries: of the store, by the id of a case.
        recipe_hash: of the recipe and the classes.
        check: whether to read all arrays.
    """
    unchanged = {}
    for case in cases:
        entry = entries.get(case.id)
        if entry is None or not _is_unchanged(entry, case, recipe_hash):
            continue
        renewed = dataclasses.replace(
            entry, subject=case.subject, grade=case.grade, target=case.target
        )
        if renewed != entry:
            entry = renewed
            store.write_entry(out, entry)
        unchanged[case.id] = entry
    to_check = [
        entry for entry in unchanged.values() if check or not store.is_untouched(out, entry)
    ]
    # hashing releases the interpreter's lock, so threads are enough
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = pool.map(lambda entry: store.is_intact(out, entry), to_check)
        with progress_bar("checking arrays", len(to_check)) as bar:
            for entry, is_intact in zip(to_check, checks, strict=True):
                bar.advance()
                if is_intact:
                    unchanged[entry.id] = _stamped(out, entry)
                else:
                    echo(f"{entry.id}: its arrays are damaged; preparing it again")
                    del unchanged[entry.id]
    return unchanged


def _stamped(out: Path, entry: StoredCase) -> StoredCase:
    """The case with the present times of its arrays, as of a store that was copied."""
    stamped = store.with_stamps(out, entry)
    if stamped.stamps == entry.stamps:
        return entry
    store.write_entry(out, stamped)
    return stamped


def _is_unchanged(entry: StoredCase, case: Case, recipe_hash: str) -> bool:
    """Whether the stored case was made in the same way, of files that look untouched."""
    return (
        entry.recipe_hash == request_hash(case, recipe_hash)
        # by an earlier version
        and entry.profile is not None
        and entry.has_label == (case.label is not None)
        and entry.sources == file_states(case)
    )
