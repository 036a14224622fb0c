"""What is printed of a preparation, and the table of rejected scans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from selfvox.data.formats.label_values import two_numbers_of_one_class
from selfvox.data.naming import natural_key
from selfvox.data.preparation.prepare_case import LABEL_REMEDY, LOOKS_LIKE_A_LABEL, Rejected
from selfvox.data.preparation.stored_case import StoredCase, sort_cases
from selfvox.data.sources import Dataset
from selfvox.errors import DataError
from selfvox.runs import atomic_files
from selfvox.runs.progress import echo

_CLASSES = 10
_NAMED = 3  # label maps
_PRINTED = 5  # remarks, and rejected scans, of which there may be thousands


def no_usable_scan(dataset: Dataset, out: Path, rejected: Sequence[Rejected]) -> DataError:
    """The error of a data set without a single usable scan, with the first reason."""
    table = f" (all in {out / 'rejected.csv'})" if len(rejected) > 1 else ""
    return DataError(
        f"{dataset.root}: not one of {len(rejected)} scans can be used{table}; the first: "
        f"{rejected[0].file}: {rejected[0].reason}"
    )


def write_rejected(out: Path, rejected: Sequence[Rejected]) -> None:
    """Write the table of rejected scans; without any, remove that of an earlier time."""
    table = out / "rejected.csv"
    if not rejected:
        table.unlink(missing_ok=True)
        return
    ordered = sorted(rejected, key=lambda scan: scan.id)
    rows = [(scan.id, scan.file, scan.reason) for scan in ordered]
    atomic_files.write_csv(table, ("id", "file", "reason"), rows)


def report(
    out: Path, cases: Sequence[StoredCase], new_count: int, rejected: Sequence[Rejected]
) -> None:
    """Print remarks on the cases, rejected scans, and how many there are of each."""
    cases = sort_cases(cases)
    _report_duplicates(cases)
    remarks = [f"{case.id}: {note}" for case in cases for note in case.notes]
    for remark in remarks[:_PRINTED]:
        echo(remark)
    if len(remarks) > _PRINTED:
        echo(f"and {len(remarks) - _PRINTED} more remarks, in {out / 'cases'}")
    label_maps = [scan for scan in rejected if scan.reason.startswith(LOOKS_LIKE_A_LABEL)]
    others = [scan for scan in rejected if scan not in label_maps]
    for scan in others[:_PRINTED]:
        echo(f"rejected {scan.file}: {scan.reason}")
    if label_maps:
        echo(_label_maps_line(label_maps))
    ending = f", {len(rejected)} rejected (see {out / 'rejected.csv'})" if rejected else ""
    labelled = sum(case.has_label for case in cases)
    echo(
        f"{out}: {len(cases)} scans, {labelled} with labels; {new_count} prepared now, "
        f"{len(cases) - new_count} unchanged{ending}"
    )


def report_undeclared_classes(root: Path, cases: Sequence[StoredCase]) -> None:
    """Print which values became classes, as the data set declares none, and in how many labels.

    Raises:
        DataError: some masks have 0 and 1, others 0 and 255: one class by two numbers.
    """
    labels_with: dict[int, int] = defaultdict(int)
    labelled = [case for case in cases if case.has_label]
    for case in labelled:
        for value in {*case.label_values} - {0}:
            labels_with[value] += 1
    if not labels_with:
        return
    listed = [f"{value} (in {labels_with[value]})" for value in sorted(labels_with)[:_CLASSES]]
    rest = ", ..." if len(labels_with) > _CLASSES else ""
    echo(f"classes by the values of {len(labelled)} labels: 0, {', '.join(listed)}{rest}")
    problem = two_numbers_of_one_class([case.label_values for case in labelled])
    if problem:
        raise DataError(f"{root}: {problem}")


def _label_maps_line(label_maps: Sequence[Rejected]) -> str:
    """Which files among the scans look like label maps, and what to do about them."""
    names = sorted((scan.id for scan in label_maps), key=natural_key)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"left out, since their voxels look like label maps: {', '.join(names[:_NAMED])}{more}; "
        f"{LABEL_REMEDY}"
    )


def _report_duplicates(cases: Sequence[StoredCase]) -> None:
    """Print scans with the same voxels that belong to several subjects."""
    by_contents = defaultdict(list)
    for case in cases:
        # not of the files: one of them may be compressed again
        by_contents[case.sha256["images"]].append(case)
    for duplicates in by_contents.values():
        if len({case.subject for case in duplicates}) > 1:
            ids = ", ".join(case.id for case in duplicates)
            echo(
                f"{ids}: the same scan under several subjects; training and test may share it, "
                "remove all but one"
            )
