"""Which predictions of a folder are kept: of the same scans, and undamaged or corrected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfvox.data.formats import image as images
from selfvox.data.preparation.prepare_case import combine_hashes
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.case_ledger import read_ledger, write_ledger
from selfvox.runs.atomic_files import sha256
from selfvox.runs.progress import echo


def with_own_names(files: CaseFiles, cases: Sequence[Case], replace: bool) -> list[Case]:
    """The cases, with another name where their own is that of another scan's prediction.

    Args:
        files: of each case in the folder, which is locked.
        cases: to predict.
        replace: that prediction is removed instead, unless somebody corrected its label.
    """
    records = read_ledger(files.path)
    named = []
    for case in cases:
        digests = scan_digests(case) if case.id in records else []
        if case.id not in records or _is_same_scan(case, records[case.id]["scan"], digests):
            named.append(case)
            continue
        if replace and not _has_corrected_label(files, case, records[case.id]["files"]):
            echo(f"{case.id}: is another scan than the one predicted before, which is replaced")
            del records[case.id]
            _remove_files(files, case)
            named.append(case)
            continue
        new_id = f"{case.id}~{combine_hashes(case, digests)[:8]}"
        if new_id not in records:
            remedy = "its label was corrected" if replace else "--replace replaces it"
            echo(
                f"{case.id}: is another scan than the one predicted before; predicted as "
                f"{new_id} ({remedy})"
            )
        named.append(dataclasses.replace(case, id=new_id))
    if replace:
        write_ledger(files.path, records)
    return named


def keep_finished(files: CaseFiles, cases: Sequence[Case]) -> set[str]:
    """Ids of the cases whose predictions are complete; removes what there is of the others."""
    records = read_ledger(files.path)
    finished = set()
    for case in cases:
        if case.id not in records:
            continue
        if _is_finished(files, case, records[case.id]["files"]):
            finished.add(case.id)
        else:
            del records[case.id]
            _remove_files(files, case)
    write_ledger(files.path, records)
    return finished


def _remove_files(files: CaseFiles, case: Case) -> None:
    """Remove a prediction that is made again: if that fails, it must not be taken for the new."""
    for path in files.of(case):
        path.unlink(missing_ok=True)


def _is_finished(files: CaseFiles, case: Case, digests: Mapping[str, str]) -> bool:
    """Whether the files of a case are intact, or somebody corrected its label.

    A corrected label is never overwritten.
    """
    paths = files.of(case)
    if _has_corrected_label(files, case, digests):
        echo(
            f"{paths[0].name}: was changed since it was predicted; kept as it is, "
            "and the case not predicted again"
        )
        return True
    return all(_is_intact(path, digests.get(path.name)) for path in paths)


def _is_same_scan(case: Case, recorded: Sequence[str], digests: Sequence[str]) -> bool:
    """Whether the files are those of the record; slices may have other names, in another order."""
    if case.stacked:
        return sorted(recorded) == sorted(digests)
    return recorded == digests


def _has_corrected_label(files: CaseFiles, case: Case, digests: Mapping[str, str]) -> bool:
    """Whether somebody changed the label of a case since it was predicted."""
    paths = files.of(case)
    return bool(paths) and _is_corrected(paths[0], digests.get(paths[0].name))


def _is_corrected(label: Path, digest: str | None) -> bool:
    """Whether the file is a readable label, but not the one that was predicted."""
    if digest is None or not label.is_file() or sha256(label) == digest:
        return False
    try:
        images.read_grid(label)
    except DataError:
        return False
    return True


def _is_intact(path: Path, digest: str | None) -> bool:
    if digest is None or not path.is_file():
        return False
    if sha256(path) != digest:
        echo(f"{path.name}: damaged; predicting it again")
        return False
    return True


def scan_digests(case: Case) -> list[str]:
    """SHA-256 of each file of a scan; "" for a missing one."""
    # a missing file is reported when the case is read
    return [sha256(path) if path.is_file() else "" for path in case.images]
