"""What changed in a data set since its store was made: scans that are gone, renamed subjects."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from selfvox.data import naming
from selfvox.data.preparation import split
from selfvox.data.preparation.prepare_case import image_hash
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Dataset
from selfvox.errors import DataError, UsageError
from selfvox.runs.progress import echo

_MOST_VANISHED = 0.5  # of the scans or labels of a store, when it is prepared again


def check_vanished(
    dataset: Dataset, out: Path, stored_ids: Collection[str], entries: Mapping[str, StoredCase]
) -> None:
    """Print how many scans and labels are gone since the store was made.

    Raises:
        UsageError: more than half of them are gone, such as after a disk was not mounted.
    """
    present = {case.id for case in dataset.cases}
    unlabelled = {case.id for case in dataset.cases if case.label is None}
    labelled = {case_id for case_id, entry in entries.items() if entry.has_label}
    for kind, before, gone in (
        ("scans", set(stored_ids), set(stored_ids) - present),
        ("labels", labelled, labelled & unlabelled),
    ):
        if not gone:
            continue
        example = naming.printable(min(gone, key=naming.natural_key))
        text = f"{len(gone)} of the {len(before)} {kind} in this store are gone, such as {example}"
        if len(gone) > _MOST_VANISHED * len(before):
            raise UsageError(
                f"{out}: {text}; mount or restore what is missing, or name another --out"
            )
        echo(f"{out}: {text}")


def rename_split_subjects(
    dataset: Dataset, out: Path, removed_ids: Collection[str], entries: Mapping[str, StoredCase]
) -> None:
    """Give the split the present names of the subjects.

    Otherwise a test scan would be trained on as soon as its subject is renamed. A scan with a new
    id is recognised by its contents, if the scan with the old id is gone.

    Raises:
        DataError: a subject would have two uses.
    """
    file = out / "split.json"
    stored_split = split.read_split_if_present(file)
    if stored_split is None:
        return
    removed = [entry for case_id, entry in entries.items() if case_id in removed_ids]
    names = []
    for case in dataset.cases:
        if case.id in entries:
            names.append((entries[case.id].subject, case.subject))
        elif removed:
            # a file that cannot be read is reported by its preparation
            with contextlib.suppress(DataError):
                contents = image_hash(case)
                names += [
                    (entry.subject, case.subject)
                    for entry in removed
                    if entry.image_hash == contents
                ]
    changed = {(old, new) for old, new in names if old != new}
    if changed:
        split.write_split(split.rename_subjects(stored_split, names), file)
        echo(f"{out}: {len(changed)} subjects were renamed; each keeps its part of the split")
