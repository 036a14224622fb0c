"""A plain folder, searched with all subfolders; or one scan; or a text file with one scan per line.

Which files are labels, and of which scan, is decided by `pairing`. Where a scan may have several
labels, or a label belongs to one of several scans, the person is asked: `folder:WORD` takes the
files in a folder of that name, or with a name that begins or ends with it, `folder:WORD,WORD` also
says which scans, and `folder:none` takes no labels. Volumes and pictures are never mixed. The lines
of a list are absolute, or relative to the list and then inside its folder. `channels.csv` in the
folder names several channels of each file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from selfvox.data import pairing
from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import count_of, natural_key, printable
from selfvox.data.pairing import Pairing
from selfvox.data.sources import Case, ChoiceNeeded, Dataset, case_key
from selfvox.data.sources._channel_table import read_channel_names
from selfvox.data.sources._class_table import read_class_table
from selfvox.data.sources._files import (
    first_names,
    is_hidden,
    name_scans,
    raise_unlistable,
    read_lines,
    resolve_inside,
)
from selfvox.data.sources._table_files import unread_note
from selfvox.errors import DataError, UsageError

_NO_LABELS = "none"
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
# many volumes come with snapshots for quality control: up to one picture per four volumes is left
# out, and the reverse; more are ambiguous
_MIN_RATIO = 4


def looks_like(root: Path) -> bool:
    """A folder, a scan or a text file."""
    return root.is_dir() or suffix(root) != "" or root.suffix.lower() == ".txt"


def read_dataset(root: Path) -> Dataset:
    """List the scans, with the labels next to them.

    Raises:
        ChoiceNeeded: names leave open which label belongs to which scan.
        DataError: there is none, or volumes and pictures are mixed.
    """
    if root.is_dir():
        return _read_folder(root)
    if suffix(root):
        return _dataset(root.parent, [root], {}, [], listed=True)
    if root.suffix.lower() == ".txt":
        return _read_list(root)
    endings = ", ".join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))
    raise DataError(f"{printable(root)}: not a scan; readable are {endings}")


def read_choice(root: Path, choice: str) -> Dataset:
    """The scans of a folder with the labels, and only the scans, that the words of `choice` name.

    Raises:
        UsageError: a word names none of the files, or `root` is no folder.
        DataError: as `read_dataset`.
    """
    if not root.is_dir():
        raise UsageError(
            f"source: {printable(root)} is no folder, so there is nothing to choose in it; "
            "leave out what follows the colon"
        )
    return _read_folder(root, tuple(choice.split(",")))


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
    return _dataset(folder, scans, {}, [], listed=True)


@dataclass
class _Contents:
    """The files of a folder and its subfolders."""

    scans: list[Path] = field(default_factory=list)
    hidden: int = 0
    links: int = 0
    other_endings: Counter[str] = field(default_factory=Counter)


def _read_folder(root: Path, words: Sequence[str] = ()) -> Dataset:
    """The scans of a folder; `words` say which files a person takes where names leave it open."""
    contents = _walk(root)
    files, notes = _one_kind(root, contents.scans)
    notes += _ignored_notes(contents) + unread_note(root)
    scans, labels = pairing.tell_labels([file.relative_to(root) for file in files])
    if words == (_NO_LABELS,):
        notes += [f"{count_of(len(labels), 'label')} left out, as requested"] if labels else []
        labels = []
    else:
        scans, labels = _restrict(root, scans, labels, words)
    pairs = pairing.match_labels(scans, labels)
    unmatched = _unmatched_note(root, pairs)
    notes += unmatched
    if not scans:
        endings = ", ".join(sorted([*SUFFIXES_3D, *SUFFIXES_2D]))
        details = "; ".join(notes) or "the folder is empty"
        remedy = "; if these are scans, list them in a text file" if labels else ""
        raise DataError(
            f"{printable(root)}: no scan found; looked for {endings} in all subfolders; "
            f"{details}{remedy}"
        )
    question = _question(root, pairs)
    if question:
        raise ChoiceNeeded(question)
    labels_of = {root / scan: root / label for scan, label in pairs.labels.items()}
    dataset = _dataset(root, [root / scan for scan in scans], labels_of, notes)
    return replace(dataset, warnings=tuple(unmatched))


def _restrict(
    root: Path, scans: list[PurePath], labels: list[PurePath], words: Sequence[str]
) -> tuple[list[PurePath], list[PurePath]]:
    """The scans and labels that the words name; all of a kind that no word names.

    Raises:
        UsageError: a word names none of the files.
    """
    for word in words:
        named_labels = [label for label in labels if pairing.answers_to(label, word)]
        named_scans = [scan for scan in scans if pairing.answers_to(scan, word)]
        if not named_labels and not named_scans:
            raise UsageError(
                f"source: no file in {printable(root)} is in a folder '{printable(word)}' or "
                f"has a name that begins or ends with it; folder:{_NO_LABELS} takes no labels"
            )
        labels = named_labels or labels
        scans = named_scans or scans
    return scans, labels


def _unmatched_note(root: Path, pairs: Pairing) -> list[str]:
    if not pairs.unmatched:
        return []
    files = [root / label for label in pairs.unmatched]
    return [
        f"named like labels, but no scan of the same name exists, left out: {first_names(files)}; "
        "if they belong to scans of other names, pair them in a table with the columns image and "
        "label"
    ]


def _question(root: Path, pairs: Pairing) -> str:
    """What only a person can decide about the labels; "" if names leave nothing open."""
    if pairs.several_labels:
        scan, candidates = next(iter(pairs.several_labels.items()))
        fact = (
            f"{printable(scan)} has {len(candidates)} files that may be its label "
            f"({_first_paths(candidates)}){_and_others(pairs.several_labels, 'scan')}"
        )
    elif pairs.several_scans:
        label, candidates = next(iter(pairs.several_scans.items()))
        fact = (
            f"{printable(label)} may be the label of {len(candidates)} scans "
            f"({_first_paths(candidates)}){_and_others(pairs.several_scans, 'label')}"
        )
    else:
        return ""
    words = [pairing.shortest_word(path, candidates) for path in candidates[:2]]
    answers = " or ".join(f"folder:{printable(word)}" for word in words)
    return (
        f"{printable(root)}: {fact}; take one with --source {answers}, none with "
        f"folder:{_NO_LABELS}, or pair them in a table with the columns image and label"
    )


def _first_paths(paths: Sequence[PurePath]) -> str:
    rest = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    return ", ".join(printable(path.as_posix()) for path in paths[:2]) + rest


def _and_others(like: Collection[PurePath], noun: str) -> str:
    others = len(like) - 1
    return f", and so for {count_of(others, noun)} more" if others else ""


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
        notes.append(
            f"links to folders not followed: {contents.links}; name the folder that one leads to, "
            "or list the scans in a text file"
        )
    if contents.other_endings:
        endings = ", ".join(
            f"{count} {printable(ending) or 'without ending'}"
            for ending, count in contents.other_endings.most_common(4)
        )
        notes.append(
            f"files that are not scans ignored: {contents.other_endings.total()} ({endings})"
        )
    dicom = sum(contents.other_endings[ending] for ending in _DICOM_ENDINGS)
    if dicom:
        notes.append(
            f"{count_of(dicom, 'DICOM file')} among them: --source dicom reads their series"
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


def _dataset(
    root: Path,
    images: Sequence[Path],
    labels: Mapping[Path, Path],
    notes: Sequence[str],
    listed: bool = False,
) -> Dataset:
    ids, subjects = name_scans(images, root)
    cases = [
        Case(id, subject, (image,), labels.get(image), listed=listed)
        for id, subject, image in zip(ids, subjects, images, strict=True)
    ]
    cases.sort(key=case_key)
    if labels:
        image, label = min(labels.items(), key=lambda pair: natural_key(str(pair[0])))
        pair = f"{printable(label.relative_to(root))} of {printable(image.relative_to(root))}"
        notes = [f"{len(labels)} of {len(cases)} scans have a label, such as {pair}", *notes]
    channels, channel_notes = read_channel_names(root, cases[0].images[0])
    classes, class_notes = read_class_table(root)
    notes = (*notes, *channel_notes, *class_notes)
    return Dataset(root, "folder", tuple(cases), channels, classes, notes, guesses_subjects=True)
