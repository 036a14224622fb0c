"""BIDS: `sub-*/anat/*_SUFFIX.nii.gz`, with or without `ses-*/`; `bids:T1w` takes one suffix.

The subject is `sub-*`; its sessions are cases of the same subject, so that no split separates them.
`derivatives/` and other folders next to `sub-*` are not read. `participants.tsv` lists the subjects
to expect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import count_of, first_names, read_lines
from selfvox.errors import DataError, UsageError, did_you_mean

_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat")
_ENDINGS = (".nii.gz", ".nii")
# next to the scans, but not scans
_MASKS = ("mask", "defacemask", "dseg", "probseg", "roi", "label")


def looks_like(root: Path) -> bool:
    """A folder with `sub-*/anat/sub-*_*.nii*` in it."""
    try:
        return root.is_dir() and any(
            any(root.glob(f"{folder}/sub-*_*.nii*")) for folder in _FOLDERS
        )
    except OSError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List every anatomical scan; one case each, whatever its suffix.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: not a folder; name the one with sub-*/ in it")
    volumes = _volumes(root)
    masks = [path for path in volumes if _kind(path) in _MASKS]
    scans = [path for path in volumes if _kind(path) not in _MASKS]
    if not scans:
        raise DataError(
            f"{printable(root)}: no scan found; "
            "looked for sub-*/anat/*.nii.gz and sub-*/ses-*/anat/*.nii.gz"
        )
    paths = naming.relative_paths(scans, root)
    ids = naming.case_ids(paths, [suffix(scan) for scan in scans])
    cases = [
        # of an anatomical folder
        Case(id, naming.safe_name(path.parts[0]), (scan,), modality="MR")
        for id, path, scan in zip(ids, paths, scans, strict=True)
    ]
    notes = _participant_notes(root, {path.parts[0] for path in paths})
    if masks:
        notes.append(f"{count_of(len(masks), 'mask')} left out: {first_names(masks)}")
    notes += _kinds_note(scans)
    cases.sort(key=case_key)
    return Dataset(root, "bids", tuple(cases), ("image",), None, tuple(notes))


def read_choice(root: Path, kind: str) -> Dataset:
    """Only the scans that end in `_kind`.

    Raises:
        UsageError: there are none.
        DataError: as `read_dataset`.
    """
    dataset = read_dataset(root)
    kinds = {_kind(case.images[0]) for case in dataset.cases}
    if kind not in kinds:
        raise UsageError(
            f"source: {printable(dataset.root)} has no _{printable(kind)} scans"
            f"{did_you_mean(kind, kinds)}"
        )
    cases = tuple(case for case in dataset.cases if _kind(case.images[0]) == kind)
    notes = tuple(note for note in dataset.notes if "several kinds" not in note)
    return replace(dataset, cases=cases, notes=notes)


def _volumes(root: Path) -> list[Path]:
    """The visible NIfTI files of all anatomical folders; macOS adds a hidden `._NAME` to each."""
    volumes = [
        path
        for folder in _FOLDERS
        for path in root.glob(f"{folder}/*")
        if suffix(path) in _ENDINGS and not path.name.startswith(".")
    ]
    return sorted(volumes)


def _kind(scan: Path) -> str:
    """`T1w` of `sub-01_ses-2_T1w.nii.gz`."""
    return naming.stem(scan, suffix(scan)).rpartition("_")[2]


def _kinds_note(scans: Sequence[Path]) -> list[str]:
    kinds = Counter(map(_kind, scans)).most_common()
    if len(kinds) == 1:
        return []
    listed = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds)
    most_common = printable(kinds[0][0])
    return [f"scans of several kinds ({listed}); take one kind with --source bids:{most_common}"]


def _participant_notes(root: Path, with_scans: set[str]) -> list[str]:
    """The subjects of `participants.tsv` without a scan, and the reverse."""
    table = root / "participants.tsv"
    if not table.is_file():
        return []
    try:
        rows = [line.split("\t") for line in read_lines(table) if line.strip()]
    except DataError as error:
        # it is only compared with: its damage costs no scan
        return [f"{error} (its scans are used all the same)"]
    if not rows or rows[0][0].strip() != "participant_id":
        return [
            "participants.tsv has no first column participant_id, "
            "so it is not compared with the folders"
        ]
    names = {row[0].strip() for row in rows[1:]}
    # some tables leave the prefix out
    listed = {name if name.startswith("sub-") else f"sub-{name}" for name in names}
    return [
        *_subjects_note("of participants.tsv without a scan", listed - with_scans),
        *_subjects_note("with scans and not in participants.tsv", with_scans - listed),
    ]


def _subjects_note(description: str, subjects: set[str]) -> list[str]:
    if not subjects:
        return []
    in_order = [Path(name) for name in sorted(subjects, key=naming.natural_key)]
    return [f"{count_of(len(subjects), 'subject')} {description}: {first_names(in_order)}"]
