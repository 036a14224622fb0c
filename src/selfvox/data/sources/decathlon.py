"""The Medical Segmentation Decathlon: a `dataset.json` that lists images and labels.

The lists `training`, `validation` and `test` hold `{"image": ..., "label": ...}` or paths of images alone; entries
without a label join as cases without one. `modality` names the channels; several channels lie in one 4D file. Paths are
relative to the folder of `dataset.json` and stay inside it. Brain tumours (Task01) bring the regions of BraTS along.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from selfvox.data import naming
from selfvox.data.formats import strict_json
from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import contained, few
from selfvox.errors import DataError

_LISTS = ("training", "validation", "test")
# of Task01, as it spells them; their regions are those of BraTS
_BACKGROUND, _OEDEMA, _CORE, _ENHANCING = (
    "background",
    "edema",
    "non-enhancing tumor",
    "enhancing tumour",
)


def looks_like(root: Path) -> bool:
    """A `dataset.json` that lists cases, or its folder; a damaged one counts, so that it gets its message."""
    table = _table(root)
    if not table.is_file() or table.suffix.lower() != ".json":
        return False
    numbered = any((table.parent / "imagesTr").glob("*_0000.*"))  # nnU-Net's way of naming channels
    try:
        content = strict_json.read_json(table)
    except DataError:
        return not numbered
    listed = content.get("training") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        return (
            not numbered and isinstance(content, dict) and any(name in content for name in _LISTS)
        )
    first = listed[0].get("image") if isinstance(listed[0], dict) else listed[0]
    try:
        return not numbered or (
            isinstance(first, str) and contained(table.parent, first, table).is_file()
        )
    except DataError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List the cases that `dataset.json` names."""
    table = _table(root)
    if not table.exists():
        raise DataError(
            f"{printable(root)}: no dataset.json there, so it is not a decathlon data set; try --source auto"
        )
    content = strict_json.read_json(table)
    if not isinstance(content, dict):
        raise DataError(
            f"{printable(table)}: not an object with the list 'training'; is it a decathlon dataset.json?"
        )
    entries = [entry for name in _LISTS for entry in _entries(content, name, table)]
    if not entries:
        raise DataError(f"{printable(table)} lists no case under {', '.join(_LISTS)}; add some")
    named = [path for image, label in entries for path in (image, label) if path]
    absent = [path for path in named if not path.is_file()]
    if absent:
        raise DataError(
            f"{printable(table)} lists {few(absent)}, but no such file is there; restore or unlist it"
        )
    twice = [
        path
        for path, times in Counter(image.resolve() for image, _ in entries).items()
        if times > 1
    ]
    if twice:
        raise DataError(
            f"{printable(table)} lists {few(twice)} more than once; keep one entry each"
        )
    images = {image.resolve() for image, _ in entries}
    both = [label for _, label in entries if label and label.resolve() in images]
    if both:
        raise DataError(f"{printable(table)} lists {few(both)} as label and as image; correct it")
    relative = [image.relative_to(table.parent) for image, _ in entries]
    endings = [suffix(image) for image, _ in entries]
    ids, subjects = naming.case_ids(relative, endings), naming.subject_names(relative, endings)
    rows = zip(ids, subjects, entries, strict=True)
    cases = sorted(
        (Case(id, subject, (image,), label) for id, subject, (image, label) in rows), key=case_key
    )
    unlabelled = sum(case.label is None for case in cases)
    notes = (f"{unlabelled} of {len(cases)} cases have no label",) if unlabelled else ()
    classes = _classes(content, table)
    channels = _channels(content, table)
    return Dataset(
        table.parent, "decathlon", tuple(cases), channels, classes, notes, _regions(classes)
    )


def _table(root: Path) -> Path:
    return root / "dataset.json" if root.is_dir() else root


def _entries(content: dict[str, Any], name: str, table: Path) -> list[tuple[Path, Path | None]]:
    listed = content.get(name, [])
    if not isinstance(listed, list):
        raise DataError(
            f'{printable(table)}: \'{name}\' is not a list; write [{{"image": ..., "label": ...}}, ...]'
        )
    return [_entry(entry, f"{name}[{place}]", table) for place, entry in enumerate(listed)]


def _entry(entry: Any, place: str, table: Path) -> tuple[Path, Path | None]:
    image, label = (
        (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
    )
    if not isinstance(image, str) or not (label is None or isinstance(label, str)):
        form = 'a path or {"image": path, "label": path}'
        raise DataError(f"{printable(table)}: {place} is not {form}; correct it")
    found = contained(table.parent, image, table)
    if not suffix(found):
        raise DataError(
            f"{printable(table)}: {place} names '{printable(image[:120])}', not a scan that can be read"
        )
    return found, None if label is None else contained(table.parent, label, table)


def _channels(content: dict[str, Any], table: Path) -> tuple[str, ...]:
    names = content.get("modality", {"0": "image"})
    numbered = isinstance(names, dict) and set(names) == {
        str(number) for number in range(len(names))
    }
    if not numbered or not names or not all(isinstance(name, str) for name in names.values()):
        raise DataError(
            f'{printable(table)}: \'modality\' must number the channels from 0, as in {{"0": "MRI"}}'
        )
    return tuple(names[str(number)] for number in range(len(names)))


def _classes(content: dict[str, Any], table: Path) -> dict[int, str] | None:
    names = content.get("labels")
    if names is None:
        return None
    numbers = isinstance(names, dict) and all(
        key.isascii() and key.isdecimal() and len(key) < 6 for key in names
    )
    if not numbers or not names or not all(isinstance(name, str) for name in names.values()):
        example = '{"0": "background", "1": "tumour"}'
        raise DataError(
            f"{printable(table)}: 'labels' must give each value in the labels a name, as in {example}"
        )
    return {int(key): names[key] for key in sorted(names, key=int)}


def _regions(classes: dict[int, str] | None) -> dict[str, tuple[int, ...]] | None:
    """Whole tumour, tumour core and enhancing tumour of the decathlon's brain tumours; None of other data."""
    value = {name: number for number, name in (classes or {}).items()}
    if value.keys() != {_BACKGROUND, _OEDEMA, _CORE, _ENHANCING}:
        return None
    core = tuple(sorted((value[_CORE], value[_ENHANCING])))
    return {"WT": tuple(sorted((value[_OEDEMA], *core))), "TC": core, "ET": (value[_ENHANCING],)}
