"""BIDS: `sub-*/anat/*_SUFFIX.nii.gz`, with or without `ses-*/`; `bids:T1w` takes one suffix.

The subject is `sub-*`; its sessions are cases of the same subject, so that no split separates them.
Label maps next to the scans and in `derivatives/` are made by many programs for many ends, so they
are counted, and read only where a person names them: `bids:T1w,dseg` takes files that end in
`dseg`, or are in a folder of that name. A suffix of `sub-*/dwi` may be named, too. Phase images are
left out. `participants.tsv` lists the subjects to expect.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfvox.data import naming, pairing
from selfvox.data.formats.image import suffix
from selfvox.data.naming import count_of, printable
from selfvox.data.sources import Case, ChoiceNeeded, Dataset, case_key
from selfvox.data.sources._files import first_names, read_lines, walk_visible
from selfvox.errors import DataError, UsageError, did_you_mean

_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat")
_MORE_FOLDERS = ("sub-*/dwi", "sub-*/ses-*/dwi")  # of scans that have to be asked for
_DERIVATIVES = "derivatives"
_ENDINGS = (".nii.gz", ".nii")
# next to the scans, but not scans; the last two are no labels either
_LABELS = ("mask", "msk", "dseg", "roi", "label", "seg")
_NO_LABELS = ("probseg", "defacemask")
_PARTS = ("part-phase", "part-real", "part-imag")  # of complex images, next to the magnitude
_SPACE = re.compile(r"(?:^|_)(space-[A-Za-z0-9]+)")


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
    scans, masks, parts = _find(root, _FOLDERS)
    if not scans:
        raise DataError(
            f"{printable(root)}: no scan found; "
            "looked for sub-*/anat/*.nii.gz and sub-*/ses-*/anat/*.nii.gz"
        )
    notes = _participant_notes(root, {scan.relative_to(root).parts[0] for scan in scans})
    labels = [mask for mask in masks if _kind(mask) in _LABELS] + _labels_of_derivatives(root)
    no_labels = [mask for mask in masks if _kind(mask) in _NO_LABELS]
    if no_labels:
        notes.append(f"{count_of(len(no_labels), 'mask')} left out: {first_names(no_labels)}")
    if parts:
        notes.append(
            f"{count_of(len(parts), 'file')} of phase, real or imaginary parts left out: "
            f"{first_names(parts)}"
        )
    notes += _labels_note(root, scans, labels)
    notes += _kinds_note(scans)
    return _dataset(root, scans, {}, notes)


def read_choice(root: Path, choice: str) -> Dataset:
    """Only the scans that end in the first word of `choice`, with the labels of the others.

    Raises:
        UsageError: there are none.
        ChoiceNeeded: a scan has several labels of that name.
        DataError: as `read_dataset`.
    """
    kind, *words = choice.split(",")
    anatomical, masks, _ = _find(root, _FOLDERS)
    others, other_masks, _ = _find(root, _MORE_FOLDERS)
    kinds = set(map(_kind, anatomical))
    scans = [scan for scan in anatomical if _kind(scan) == kind] or [
        scan for scan in others if _kind(scan) == kind
    ]
    if not scans:
        raise UsageError(
            f"source: {printable(root)} has no _{printable(kind)} scans{did_you_mean(kind, kinds)}"
        )
    notes = _participant_notes(root, {scan.relative_to(root).parts[0] for scan in scans})
    labels = [*masks, *other_masks, *_labels_of_derivatives(root)]
    for word in words:
        named = [label for label in labels if pairing.answers_to(label.relative_to(root), word)]
        if not named:
            endings = set(map(_kind, labels))
            raise UsageError(
                f"source: {printable(root)} has no labels '{printable(word)}'"
                f"{did_you_mean(word, endings)}"
            )
        labels = named
    label_of = _pair(root, scans, labels) if words else {}
    if words:
        notes.append(f"{len(label_of)} of {len(scans)} scans have a label")
    return _dataset(root, scans, label_of, notes)


def _find(root: Path, folders: Sequence[str]) -> tuple[list[Path], list[Path], list[Path]]:
    """The scans, the masks and the parts of complex images in such folders.

    Raises:
        DataError: `root` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: not a folder; name the one with sub-*/ in it")
    volumes = [path for folder in folders for path in root.glob(f"{folder}/*") if _is_volume(path)]
    masks = [path for path in volumes if _kind(path) in (*_LABELS, *_NO_LABELS)]
    parts = [path for path in volumes if any(f"_{part}_" in path.name for part in _PARTS)]
    scans = [path for path in volumes if path not in {*masks, *parts}]
    return sorted(scans), sorted(masks), sorted(parts)


def _labels_of_derivatives(root: Path) -> list[Path]:
    return sorted(
        folder / name
        for folder, names in walk_visible(root / _DERIVATIVES)
        for name in names
        if _is_volume(folder / name) and _kind(folder / name) in _LABELS
    )


def _is_volume(path: Path) -> bool:
    """Whether it is a visible NIfTI file; macOS adds a hidden `._NAME` to each."""
    return suffix(path) in _ENDINGS and not path.name.startswith(".")


def _pair(root: Path, scans: Sequence[Path], labels: Sequence[Path]) -> dict[Path, Path]:
    """The label of each scan that has one.

    Raises:
        ChoiceNeeded: a scan has several, or a label fits several scans.
    """
    spaces = {_space(scan) for scan in scans}
    # a label on the grid of a template is none of a scan on its own
    same_space = [label for label in labels if _space(label) in spaces]
    pairs = pairing.match_labels(
        [scan.relative_to(root) for scan in scans],
        [label.relative_to(root) for label in same_space],
    )
    for several, noun in ((pairs.several_labels, "labels"), (pairs.several_scans, "scans")):
        for path, candidates in several.items():
            words = " or ".join(pairing.shortest_word(file, candidates) for file in candidates[:2])
            raise ChoiceNeeded(
                f"{printable(root)}: {printable(path.name)} has {len(candidates)} {noun} "
                f"({first_names([Path(file) for file in candidates])}); add {printable(words)} to "
                "the words after --source bids:"
            )
    return {root / scan: root / label for scan, label in pairs.labels.items()}


def _dataset(
    root: Path, scans: Sequence[Path], label_of: Mapping[Path, Path], notes: Sequence[str]
) -> Dataset:
    paths = naming.relative_paths(scans, root)
    ids = naming.case_ids(paths, [suffix(scan) for scan in scans])
    cases = [
        # of an anatomical folder
        Case(id, naming.safe_name(path.parts[0]), (scan,), label_of.get(scan), modality="MR")
        for id, path, scan in zip(ids, paths, scans, strict=True)
    ]
    cases.sort(key=case_key)
    return Dataset(root, "bids", tuple(cases), ("image",), None, tuple(notes))


def _labels_note(root: Path, scans: Sequence[Path], labels: Sequence[Path]) -> list[str]:
    """The label maps that a person may take, by their endings."""
    if not labels:
        return []
    endings = Counter(map(_kind, labels)).most_common()
    listed = ", ".join(f"{count} {printable(ending)}" for ending, count in endings[:4])
    kind = Counter(map(_kind, scans)).most_common(1)[0][0]
    others, _, _ = _find(root, _MORE_FOLDERS)
    kinds = sorted({*map(_kind, scans), *map(_kind, others)} - {kind})
    instead = f" (or {', '.join(map(printable, kinds))} in place of {kind})" if kinds else ""
    return [
        f"label maps left out ({listed}), such as {first_names(labels[:1])}; "
        f"take one kind with --source bids:{printable(kind)},{printable(endings[0][0])}{instead}"
    ]


def _space(path: Path) -> str:
    match = _SPACE.search(path.name)
    return match[1] if match else ""


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
