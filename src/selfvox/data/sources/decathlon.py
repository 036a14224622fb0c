"""The Medical Segmentation Decathlon: a `dataset.json` that lists images and labels.

The lists `training`, `validation` and `test` or `testing` have entries `{"image": ..., "label":
...}` or paths of images alone; entries without a label join as cases without one. Several channels
are in one 4D file, or, as in MONAI's lists, `image` is a list with a file per channel; a label that
is a number is the grade of the scan. `modality` names the channels. Paths are relative to the
folder of `dataset.json` and stay inside it. Brain tumours (Task01) have the regions of BraTS too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import (
    first_names,
    name_scans,
    numbered_names,
    resolve_inside,
    unlabelled_note,
)
from selfvox.data.sources.brats import tumour_regions
from selfvox.errors import DataError
from selfvox.runs import strict_json

_LISTS = ("training", "validation", "test", "testing")
_MAX_GRADE = 999
# classes of Task01, as it spells them
_BACKGROUND = "background"
_OEDEMA = "edema"
_CORE = "non-enhancing tumor"
_ENHANCING = "enhancing tumour"


@dataclass(frozen=True)
class _Entry:
    """A case as a list gives it."""

    images: tuple[Path, ...]  # one file, or one per channel
    label: Path | None
    grade: int | None


def looks_like(root: Path) -> bool:
    """A `dataset.json` that lists cases, or its folder.

    A damaged one counts, so that its damage is reported.
    """
    table = _table(root)
    if not table.is_file() or table.suffix.lower() != ".json":
        return False
    # nnU-Net's way of naming channels; its first version kept the decathlon's lists
    numbered = any((table.parent / "imagesTr").glob("*_0000.*"))
    try:
        content = strict_json.read_json(table)
    except DataError:
        return not numbered
    if not isinstance(content, dict):
        return False
    training = content.get("training")
    if not isinstance(training, list) or not training:
        return not numbered and any(name in content for name in _LISTS)
    if not numbered:
        return True
    first = training[0].get("image") if isinstance(training[0], dict) else training[0]
    try:
        return isinstance(first, str) and resolve_inside(table.parent, first, table).is_file()
    except DataError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List the cases that `dataset.json` names.

    Raises:
        DataError: it is absent or damaged, or a file that it lists is.
    """
    table = _table(root)
    if not table.exists():
        raise DataError(
            f"{printable(root)}: no dataset.json there, so it is not a decathlon data set; "
            "try --source auto"
        )
    content = strict_json.read_json(table)
    if not isinstance(content, dict):
        raise DataError(
            f"{printable(table)}: not an object with the list 'training'; "
            "is it a decathlon dataset.json?"
        )
    entries = [entry for name in _LISTS for entry in _entries(content, name, table)]
    _check_entries(entries, table)
    ids, subjects = name_scans([entry.images[0] for entry in entries], table.parent)
    cases = [
        Case(id, subject, entry.images, entry.label, entry.grade, listed=True)
        for id, subject, entry in zip(ids, subjects, entries, strict=True)
    ]
    cases.sort(key=case_key)
    classes = _classes(content, table)
    return Dataset(
        root=table.parent,
        source="decathlon",
        cases=tuple(cases),
        channel_names=_channels(content, len(entries[0].images), table),
        classes=classes,
        notes=(*unlabelled_note(cases), *_unread_note(content)),
        regions=_regions(classes),
        guesses_subjects=True,
    )


def _table(root: Path) -> Path:
    return root / "dataset.json" if root.is_dir() else root


def _entries(content: dict[str, Any], name: str, table: Path) -> list[_Entry]:
    entries = content.get(name, [])
    if not isinstance(entries, list):
        form = '[{"image": ..., "label": ...}, ...]'
        raise DataError(f"{printable(table)}: '{name}' is not a list; write {form}")
    return [_entry(entry, f"{name}[{place}]", table) for place, entry in enumerate(entries)]


def _entry(entry: Any, place: str, table: Path) -> _Entry:
    named = entry.get("image") if isinstance(entry, dict) else entry
    label = entry.get("label") if isinstance(entry, dict) else None
    images: list[Any] = named if isinstance(named, list) else [named]
    is_grade = type(label) is int and 0 <= label <= _MAX_GRADE  # `type`: True is an int, too
    if (
        not images
        or not all(isinstance(image, str) for image in images)
        or not (label is None or is_grade or isinstance(label, str))
    ):
        form = (
            'a path or {"image": path, "label": path}, where several channels are a list of paths'
        )
        raise DataError(f"{printable(table)}: {place} is not {form}; correct it")
    paths = tuple(resolve_inside(table.parent, image, table) for image in images)
    for image, path in zip(images, paths, strict=True):
        if not suffix(path):
            raise DataError(
                f"{printable(table)}: {place} names '{printable(image[:120])}', "
                "not a scan that can be read"
            )
    return _Entry(
        images=paths,
        label=resolve_inside(table.parent, label, table) if isinstance(label, str) else None,
        grade=label if is_grade else None,
    )


def _check_entries(entries: Sequence[_Entry], table: Path) -> None:
    """There are some, all with as many channels, every file exists, and none is listed twice."""
    if not entries:
        raise DataError(f"{printable(table)} lists no case under {', '.join(_LISTS)}; add some")
    channels = {len(entry.images) for entry in entries}
    if len(channels) > 1:
        raise DataError(
            f"{printable(table)} lists cases of {' and '.join(map(str, sorted(channels)))} "
            "channels; give all of them the same"
        )
    files = [path for entry in entries for path in (*entry.images, entry.label) if path]
    absent = [path for path in files if not path.is_file()]
    if absent:
        raise DataError(
            f"{printable(table)} lists {first_names(absent)}, but no such file exists; "
            "restore or unlist it"
        )
    # links resolved, so that one file under two names counts as one
    images = Counter(image.resolve() for entry in entries for image in entry.images)
    repeated = [path for path, count in images.items() if count > 1]
    if repeated:
        raise DataError(
            f"{printable(table)} lists {first_names(repeated)} more than once; keep one entry each"
        )
    ambiguous = [
        entry.label for entry in entries if entry.label and entry.label.resolve() in images
    ]
    if ambiguous:
        raise DataError(
            f"{printable(table)} lists {first_names(ambiguous)} as label and as image; correct it"
        )


def _unread_note(content: dict[str, Any]) -> list[str]:
    """The lists of cases that are not read, if there are any."""
    unread = [
        f"'{printable(name[:40])}' ({len(entries)})"
        for name, entries in content.items()
        if name not in _LISTS and isinstance(entries, list) and entries
        if isinstance(entries[0], dict) and "image" in entries[0]
    ]
    if not unread:
        return []
    return [f"lists of cases not read: {', '.join(unread)}; read are {', '.join(_LISTS)}"]


def _channels(content: dict[str, Any], files: int, table: Path) -> tuple[str, ...]:
    names = numbered_names(content.get("modality", {"0": "image"}))
    if names is None:
        example = '{"0": "MRI"}'
        raise DataError(
            f"{printable(table)}: 'modality' must number the channels from 0, as in {example}"
        )
    if files > 1 and len(names) != files:
        return tuple(f"channel {number}" for number in range(files))
    return names


def _classes(content: dict[str, Any], table: Path) -> dict[int, str] | None:
    names = content.get("labels")
    if names is None:
        return None
    if not _are_class_names(names):
        example = '{"0": "background", "1": "tumour"}'
        raise DataError(
            f"{printable(table)}: 'labels' must give each value in the labels a name, "
            f"as in {example}"
        )
    return {int(key): names[key] for key in sorted(names, key=int)}


def _are_class_names(names: Any) -> bool:
    """Whether these are names by numbers of up to five digits, some at least."""
    if not isinstance(names, dict) or not names:
        return False
    # isdecimal alone accepts digits of other scripts; labels have at most 16 bits
    numbers = all(key.isascii() and key.isdecimal() and len(key) < 6 for key in names)
    return numbers and all(isinstance(name, str) for name in names.values())


def _regions(classes: dict[int, str] | None) -> dict[str, tuple[int, ...]] | None:
    """The regions of the decathlon's brain tumours; None of other data."""
    value = {name: number for number, name in (classes or {}).items()}
    if value.keys() != {_BACKGROUND, _OEDEMA, _CORE, _ENHANCING}:
        return None
    return tumour_regions(value[_CORE], value[_OEDEMA], value[_ENHANCING])
