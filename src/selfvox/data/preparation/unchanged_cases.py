"""Which cases of a store can be kept: their files are unchanged, and their arrays undamaged."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from selfvox.data.preparation import store
from selfvox.data.preparation.prepare_case import file_states, request_hash
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case
from selfvox.runs.progress import echo, progress_bar


def read_entries(out: Path, case_ids: Collection[str]) -> dict[str, StoredCase]:
    """The stored cases among these ids."""
    entries = {}
    for case_id in case_ids:
        entry = store.read_entry(out, case_id)
        if entry is not None:
            entries[case_id] = entry
    return entries


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
        if (entry.subject, entry.grade) != (case.subject, case.grade):
            entry = dataclasses.replace(entry, subject=case.subject, grade=case.grade)
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
    if stamped.stamps != entry.stamps:
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
