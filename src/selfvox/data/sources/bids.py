"""BIDS: `sub-*/anat/*_SUFFIX.nii.gz`, with or without `ses-*/` between; `bids:SUFFIX` takes one suffix, such as T1w.

The subject is `sub-*`; its sessions are cases of the same subject, so that no split parts them. `derivatives/` and
other folders beside `sub-*` are not looked at. `participants.tsv` says who should be there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import counted, few, lines
from selfvox.errors import DataError, UsageError, did_you_mean

_PLACES = ("sub-*/anat", "sub-*/ses-*/anat")
_ENDINGS = (".nii.gz", ".nii")
_MASKS = ("mask", "defacemask", "dseg", "probseg", "roi", "label")


def looks_like(root: Path) -> bool:
    """A folder with `sub-*/anat/sub-*_*.nii*` in it."""
    try:
        return root.is_dir() and any(any(root.glob(f"{place}/sub-*_*.nii*")) for place in _PLACES)
    except OSError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List every anatomical scan; one case each, whatever its suffix."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: not a folder; name the one that holds sub-*/")
    found = [
        path for place in _PLACES for path in root.glob(f"{place}/*") if suffix(path) in _ENDINGS
    ]
    there = sorted(
        path for path in found if not path.name.startswith(".")
    )  # macOS puts ._NAME beside each
    masks = [path for path in there if _kind(path) in _MASKS]
    scans = [path for path in there if path not in set(masks)]
    if not scans:
        raise DataError(
            f"{printable(root)}: no scan found; looked for sub-*/anat/*.nii.gz and sub-*/ses-*/anat/*.nii.gz"
        )
    relative, endings = naming.relative(scans, root), [suffix(scan) for scan in scans]
    ids = naming.case_ids(relative, endings)
    subjects = [naming.safe_name(path.parts[0]) for path in relative]
    rows = zip(ids, subjects, scans, strict=True)
    cases = sorted((Case(id, subject, (scan,)) for id, subject, scan in rows), key=case_key)
    notes = _participants(root, {path.parts[0] for path in relative})
    if masks:
        notes.append(f"{counted(len(masks), 'mask')} left out: {few(masks)}")
    kinds = Counter(map(_kind, scans)).most_common()
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds)
        notes.append(
            f"scans of several kinds ({listed}); take one kind with --source bids:{printable(kinds[0][0])}"
        )
    return Dataset(root, "bids", tuple(cases), ("image",), None, tuple(notes))


def choose(dataset: Dataset, kind: str) -> Dataset:
    """Only the scans whose names end in `_kind`."""
    kinds = {_kind(case.images[0]) for case in dataset.cases}
    if kind not in kinds:
        raise UsageError(
            f"source: {printable(dataset.root)} holds no _{printable(kind)} scans{did_you_mean(kind, kinds)}"
        )
    left = tuple(case for case in dataset.cases if _kind(case.images[0]) == kind)
    notes = tuple(note for note in dataset.notes if "several kinds" not in note)
    return replace(dataset, cases=left, notes=notes)


def _kind(scan: Path) -> str:
    """`T1w` of `sub-01_ses-2_T1w.nii.gz`."""
    return naming.stem(scan, suffix(scan)).rpartition("_")[2]


def _participants(root: Path, there: set[str]) -> list[str]:
    """Who stands in the table and has no scan, and the other way round."""
    table = root / "participants.tsv"
    if not table.is_file():
        return []
    try:
        header, *rows = [line.split("\t") for line in lines(table) if line.strip()] or [[""]]
    except DataError as error:
        return [f"{error} (its scans are used all the same)"]
    if header[0].strip() != "participant_id":
        return [
            "participants.tsv has no first column participant_id, so it is not compared with the folders"
        ]
    listed = {row[0].strip() for row in rows}
    listed = {name if name.startswith("sub-") else f"sub-{name}" for name in listed}
    return [
        f"{counted(len(names), 'subject')} {what}: {few([Path(name) for name in sorted(names, key=naming.natural_key)])}"
        for what, names in (
            ("of participants.tsv without a scan", listed - there),
            ("with scans and not in participants.tsv", there - listed),
        )
        if names
    ]
