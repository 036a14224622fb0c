"""A plain folder, searched to its last subfolder; or one scan; or a text file with one scan per line.

Labels are recognised in two layouts: a folder of images beside a folder of labels with the same stems
(`images/` + `labels/`, `imagesTr/` + `labelsTr/`, `scans/` + `masks/`, ...), and `NAME_seg`, `NAME_segmentation`,
`NAME_label` or `NAME_mask` beside `NAME`. Volumes and pictures are never mixed. The lines of a list are absolute, or
relative to the list and then inside its folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import channels_of, contained, counted, few, lines, unreadable
from selfvox.errors import DataError

_IMAGES = re.compile(r"(?:images?|imgs?|scans?)(tr|ts|val|)", re.IGNORECASE)
_LABELS = re.compile(
    r"(?:labels?|masks?|segs?|segmentations?|annotations?)(tr|ts|val|)", re.IGNORECASE
)
_LABEL_ENDING = re.compile(r"[-_](?:seg|segmentation|label|mask)s?$", re.IGNORECASE)
# snapshots for quality control lie beside many volumes: up to one in four is left out, more are ambiguous
_TIMES_AS_MANY = 4


def looks_like(root: Path) -> bool:
    """A folder, a scan or a text file."""
    return root.is_dir() or suffix(root) != "" or root.suffix.lower() == ".txt"


def read_dataset(root: Path) -> Dataset:
    """List the scans with what labels lie beside them."""
    if root.is_dir():
        return _crawl(root)
    if suffix(root):
        return _dataset(root.parent, [root], {}, [])
    if root.suffix.lower() == ".txt":
        return _listed(root)
    raise DataError(
        f"{printable(root)}: not a scan; readable are {', '.join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))}"
    )


def _listed(table: Path) -> Dataset:
    scans = [
        contained(table.parent, line, table, absolute=True) for line in lines(table) if line.strip()
    ]
    strange = [scan for scan in scans if not suffix(scan)]
    if strange:
        raise DataError(
            f"{printable(table)} lists {few(strange)}, which is not a scan that can be read; remove it"
        )
    absent = [scan for scan in scans if not scan.is_file()]
    if absent:
        raise DataError(
            f"{printable(table)} lists {few(absent)}, but no such file is there; correct the list"
        )
    twice = [scan for scan, times in Counter(scans).items() if times > 1]
    if twice:
        raise DataError(f"{printable(table)} lists {few(twice)} more than once; keep one line each")
    if not scans:
        raise DataError(f"{printable(table)} lists no scan; write one path per line")
    if len({suffix(scan) in SUFFIXES_2D for scan in scans}) > 1:
        raise DataError(f"{printable(table)} lists volumes and pictures; make one list of each")
    return _dataset(table.parent, scans, {}, [])


@dataclass
class _Found:
    """What a crawl met."""

    scans: list[Path] = field(default_factory=list)
    hidden: int = 0
    links: int = 0
    others: Counter[str] = field(default_factory=Counter)


def _crawl(root: Path) -> Dataset:
    found = _walk(root)
    scans, notes = _one_kind(root, found.scans)
    if found.hidden:
        notes.append(f"hidden files and folders ignored: {found.hidden}")
    if found.links:
        notes.append(f"links to folders not followed: {found.links}")
    if found.others:
        kinds = ", ".join(
            f"{count} {printable(kind) or 'without ending'}"
            for kind, count in found.others.most_common(4)
        )
        notes.append(f"files that are not scans ignored: {found.others.total()} ({kinds})")
    images, labels, more = _pair(root, scans)
    if not images:
        looked_for = ", ".join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))
        seen = "; ".join([*more, *notes]) or "the folder is empty"
        raise DataError(
            f"{printable(root)}: no scan found; looked for {looked_for} in all subfolders; {seen}"
        )
    return _dataset(root, images, labels, [*notes, *more])


def _walk(root: Path) -> _Found:
    found = _Found()
    for here, folders, files in os.walk(root, onerror=unreadable):
        visible = [name for name in folders if not _hidden(name)]
        found.hidden += len(folders) - len(visible) + sum(map(_hidden, files))
        linked = [name for name in visible if Path(here, name).is_symlink()]
        found.links += len(linked)
        folders[:] = sorted(set(visible) - set(linked))
        for name in sorted(files):
            if _hidden(name):
                continue
            path = Path(here, name)
            if suffix(path):
                found.scans.append(path)
            else:
                found.others[path.suffix.lower()] += 1
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _one_kind(root: Path, scans: list[Path]) -> tuple[list[Path], list[str]]:
    volumes = [scan for scan in scans if suffix(scan) in SUFFIXES_3D]
    pictures = [scan for scan in scans if suffix(scan) in SUFFIXES_2D]
    if not volumes or not pictures:
        return scans, []
    if len(volumes) >= _TIMES_AS_MANY * len(pictures):
        return volumes, [
            f"{counted(len(pictures), 'picture')} left out beside {len(volumes)} volumes: {few(pictures)}"
        ]
    if len(pictures) >= _TIMES_AS_MANY * len(volumes):
        return pictures, [
            f"{counted(len(volumes), 'volume')} left out beside {len(pictures)} pictures: {few(volumes)}"
        ]
    message = f"holds {len(volumes)} volumes and {len(pictures)} pictures; put each kind in a folder of its own and name one"
    raise DataError(f"{printable(root)} {message}")


def _pair(root: Path, scans: Sequence[Path]) -> tuple[list[Path], dict[Path, Path], list[str]]:
    """Tell images from labels: the images, the label of each image that has one, and notes."""
    in_label_folder = {
        scan for scan in scans if any(_LABELS.fullmatch(part) for part in _folders(root, scan))
    }
    rest = [scan for scan in scans if scan not in in_label_folder]
    named_so = {scan for scan in rest if _LABEL_ENDING.search(_stem(scan))}
    images = [scan for scan in rest if scan not in named_so]

    by_key: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        by_key[_key(root, image)].append(image)
    labels: dict[Path, Path] = {}
    alone: list[Path] = []
    for label in sorted([*in_label_folder, *named_so]):
        partners = by_key.get(_key(root, label), [])
        if not partners:
            alone.append(label)
        for image in partners:
            if image in labels:
                both = f"{printable(label)} and {printable(labels[image])}"
                raise DataError(f"{both} are both labels of {printable(image.name)}; keep one")
            labels[image] = label
    note = f"named like labels, but no scan of the same name is there, left out: {few(alone)}"
    return images, labels, [note] if alone else []


def _key(root: Path, scan: Path) -> tuple[str, ...]:
    """What a scan and its label have in common: the path without words for image and label."""
    words = [
        (_IMAGES.fullmatch(part) or _LABELS.fullmatch(part), part) for part in _folders(root, scan)
    ]
    folders = [(match[1] if match else part).casefold() for match, part in words]
    return (*filter(None, folders), _LABEL_ENDING.sub("", _stem(scan)))


def _folders(root: Path, scan: Path) -> Sequence[str]:
    return scan.relative_to(root).parent.parts


def _stem(scan: Path) -> str:
    return naming.stem(scan, suffix(scan))


def _dataset(
    root: Path, images: Iterable[Path], labels: dict[Path, Path], notes: list[str]
) -> Dataset:
    images = list(images)
    relative = naming.relative(images, root)
    endings = [suffix(image) for image in images]
    ids, subjects = naming.case_ids(relative, endings), naming.subject_names(relative, endings)
    rows = zip(ids, subjects, images, strict=True)
    cases = sorted(
        (Case(id, subject, (image,), labels.get(image)) for id, subject, image in rows),
        key=case_key,
    )
    notes = [f"{len(labels)} of {len(cases)} scans have a label", *notes] if labels else notes
    return Dataset(
        root, "folder", tuple(cases), channels_of(cases[0].images[0]), None, tuple(notes)
    )
