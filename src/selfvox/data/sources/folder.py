"""A plain folder, searched with all subfolders; or one scan; or a text file with one scan per line.

Labels are recognised in two layouts: a folder of images next to a folder of labels with the same
stems (`images/` + `labels/`, `imagesTr/` + `labelsTr/`, `scans/` + `masks/`, ...), and `NAME_seg`,
`NAME_segmentation`, `NAME_label` or `NAME_mask` next to `NAME`. Volumes and pictures are never
mixed. The lines of a list are absolute, or relative to the list and then inside its folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import (
    channels_of,
    count_of,
    first_names,
    is_hidden,
    name_scans,
    raise_unlistable,
    read_lines,
    resolve_inside,
)
from selfvox.errors import DataError

_IMAGES = re.compile(r"(?:images?|imgs?|scans?)(tr|ts|val|)", re.IGNORECASE)
_LABELS = re.compile(
    r"(?:labels?|masks?|segs?|segmentations?|annotations?)(tr|ts|val|)", re.IGNORECASE
)
_LABEL_ENDING = re.compile(r"[-_](?:seg|segmentation|label|mask)s?$", re.IGNORECASE)
# many volumes come with snapshots for quality control: up to one picture per four volumes is left
# out, and the reverse; more are ambiguous
_MIN_RATIO = 4


def looks_like(root: Path) -> bool:
    """A folder, a scan or a text file."""
    return root.is_dir() or suffix(root) != "" or root.suffix.lower() == ".txt"


def read_dataset(root: Path) -> Dataset:
    """List the scans, with the labels next to them.

    Raises:
        DataError: there is none, or which files are the scans is ambiguous.
    """
    if root.is_dir():
        return _read_folder(root)
    if suffix(root):
        return _dataset(root.parent, [root], {}, [])
    if root.suffix.lower() == ".txt":
        return _read_list(root)
    endings = ", ".join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))
    raise DataError(f"{printable(root)}: not a scan; readable are {endings}")


def _read_list(table: Path) -> Dataset:
    folder = table.parent
    scans = [
        resolve_inside(folder, line, table, absolute=True)
        for line in read_lines(table)
        if line.strip()
    ]
    unreadable = [scan for scan in scans if not suffix(scan)]
    if unreadable:
        raise DataError(
            f"{printable(table)} lists {first_names(unreadable)}, "
            "which is not a scan that can be read; remove it"
        )
    absent = [scan for scan in scans if not scan.is_file()]
    if absent:
        raise DataError(
            f"{printable(table)} lists {first_names(absent)}, but no such file exists; "
            "correct the list"
        )
    repeated = [scan for scan, count in Counter(scans).items() if count > 1]
    if repeated:
        raise DataError(
            f"{printable(table)} lists {first_names(repeated)} more than once; keep one line each"
        )
    if not scans:
        raise DataError(f"{printable(table)} lists no scan; write one path per line")
    # a network is for volumes or for pictures
    if len({suffix(scan) in SUFFIXES_2D for scan in scans}) > 1:
        raise DataError(f"{printable(table)} lists volumes and pictures; make one list of each")
    return _dataset(folder, scans, {}, [])


@dataclass
class _Contents:
    """The files of a folder and its subfolders."""

    scans: list[Path] = field(default_factory=list)
    hidden: int = 0
    links: int = 0
    other_endings: Counter[str] = field(default_factory=Counter)


def _read_folder(root: Path) -> Dataset:
    contents = _walk(root)
    scans, notes = _one_kind(root, contents.scans)
    notes += _ignored_notes(contents)
    images, labels, unpaired = _pair(root, scans)
    if not images:
        endings = ", ".join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))
        details = "; ".join([*unpaired, *notes]) or "the folder is empty"
        raise DataError(
            f"{printable(root)}: no scan found; looked for {endings} in all subfolders; {details}"
        )
    return _dataset(root, images, labels, [*notes, *unpaired])


def _walk(root: Path) -> _Contents:
    """Search a folder; links to folders are not followed, so that no loop is endless."""
    contents = _Contents()
    for folder, subfolders, files in os.walk(root, onerror=raise_unlistable):
        visible = [name for name in subfolders if not is_hidden(name)]
        contents.hidden += len(subfolders) - len(visible) + sum(map(is_hidden, files))
        links = [name for name in visible if Path(folder, name).is_symlink()]
        contents.links += len(links)
        # in place: os.walk goes on with what is left, in this order
        subfolders[:] = sorted(set(visible) - set(links))
        for name in sorted(files):
            if is_hidden(name):
                continue
            path = Path(folder, name)
            if suffix(path):
                contents.scans.append(path)
            else:
                contents.other_endings[path.suffix.lower()] += 1
    return contents


def _ignored_notes(contents: _Contents) -> list[str]:
    notes = []
    if contents.hidden:
        notes.append(f"hidden files and folders ignored: {contents.hidden}")
    if contents.links:
        notes.append(f"links to folders not followed: {contents.links}")
    if contents.other_endings:
        endings = ", ".join(
            f"{count} {printable(ending) or 'without ending'}"
            for ending, count in contents.other_endings.most_common(4)
        )
        notes.append(
            f"files that are not scans ignored: {contents.other_endings.total()} ({endings})"
        )
    return notes


def _one_kind(root: Path, scans: list[Path]) -> tuple[list[Path], list[str]]:
    """The volumes or the pictures, whichever are many more, and a note of the rest."""
    volumes = [scan for scan in scans if suffix(scan) in SUFFIXES_3D]
    pictures = [scan for scan in scans if suffix(scan) in SUFFIXES_2D]
    if not volumes or not pictures:
        return scans, []
    if len(volumes) >= _MIN_RATIO * len(pictures):
        note = f"{count_of(len(pictures), 'picture')} left out next to {len(volumes)} volumes"
        return volumes, [f"{note}: {first_names(pictures)}"]
    if len(pictures) >= _MIN_RATIO * len(volumes):
        note = f"{count_of(len(volumes), 'volume')} left out next to {len(pictures)} pictures"
        return pictures, [f"{note}: {first_names(volumes)}"]
    raise DataError(
        f"{printable(root)}: {len(volumes)} volumes and {len(pictures)} pictures; "
        "put each kind in a folder of its own and name one"
    )


def _pair(root: Path, scans: Sequence[Path]) -> tuple[list[Path], dict[Path, Path], list[str]]:
    """Tell images from labels: the images, the label of each image that has one, and notes."""
    in_label_folder = {scan for scan in scans if _is_in_label_folder(root, scan)}
    outside = [scan for scan in scans if scan not in in_label_folder]
    label_names = {scan for scan in outside if _LABEL_ENDING.search(_stem(scan))}
    images = [scan for scan in outside if scan not in label_names]

    images_of: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        images_of[_key(root, image)].append(image)
    labels: dict[Path, Path] = {}
    unmatched: list[Path] = []
    for label in sorted([*in_label_folder, *label_names]):
        partners = images_of.get(_key(root, label), [])
        if not partners:
            unmatched.append(label)
        for image in partners:
            if image in labels:
                raise DataError(
                    f"{printable(label)} and {printable(labels[image])} "
                    f"are both labels of {printable(image.name)}; keep one"
                )
            labels[image] = label
    if not unmatched:
        return images, labels, []
    note = (
        "named like labels, but no scan of the same name exists, left out: "
        f"{first_names(unmatched)}"
    )
    return images, labels, [note]


def _is_in_label_folder(root: Path, scan: Path) -> bool:
    return any(_LABELS.fullmatch(folder) for folder in _folders(root, scan))


def _key(root: Path, scan: Path) -> tuple[str, ...]:
    """What a scan and its label have in common: the path without words for image and label."""
    folders = []
    for folder in _folders(root, scan):
        match = _IMAGES.fullmatch(folder) or _LABELS.fullmatch(folder)
        folders.append((match[1] if match else folder).casefold())
    return (*filter(None, folders), _LABEL_ENDING.sub("", _stem(scan)))


def _folders(root: Path, scan: Path) -> Sequence[str]:
    return scan.relative_to(root).parent.parts


def _stem(scan: Path) -> str:
    return naming.stem(scan, suffix(scan))


def _dataset(
    root: Path, images: Sequence[Path], labels: Mapping[Path, Path], notes: Sequence[str]
) -> Dataset:
    ids, subjects = name_scans(images, root)
    cases = [
        Case(id, subject, (image,), labels.get(image))
        for id, subject, image in zip(ids, subjects, images, strict=True)
    ]
    cases.sort(key=case_key)
    if labels:
        notes = [f"{len(labels)} of {len(cases)} scans have a label", *notes]
    channels = channels_of(cases[0].images[0])
    return Dataset(root, "folder", tuple(cases), channels, None, tuple(notes))
