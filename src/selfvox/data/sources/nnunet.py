"""nnU-Net's raw data: `imagesTr/CASE_0000.nii.gz`, one file per channel, and `labelsTr/CASE.nii.gz`.

Cases of `imagesTs` join, with their label where `labelsTs` has one. `dataset.json` names channels, classes and the
file ending; without it the channels are counted. A colour picture may hold its three channels in one file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from selfvox.data import naming
from selfvox.data.formats import strict_json
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import channels_of, counted, few
from selfvox.errors import DataError

_PARTS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)
_DATASET = re.compile(r"Dataset\d{3}_.+", re.ASCII)
_Files = dict[int, Path]  # channel number -> file


def looks_like(root: Path) -> bool:
    """A folder with numbered channels in `imagesTr` or `imagesTs`, or the folder of such `DatasetXXX_...`."""
    try:
        return any(
            any((folder / images).glob("*_0000.*"))
            for folder in _folders(root)
            for images in _PARTS
        )
    except OSError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List the cases of one data set."""
    folders = _folders(root)
    if len(folders) != 1:
        raise DataError(
            f"{printable(root)} holds several data sets ({few(folders)}); name one of them"
        )
    root = folders[0]
    content = (
        strict_json.read_json(root / "dataset.json") if (root / "dataset.json").exists() else {}
    )
    if not isinstance(content, dict):
        raise DataError(
            f"{printable(root / 'dataset.json')}: not an object; is it an nnU-Net dataset.json?"
        )
    ending = _ending(content, root)
    notes: list[str] = []
    scans = {images: _scans(root / images, ending, notes) for images in _PARTS}
    channel_names, files = _channels(
        content, root, [channels for part in scans.values() for channels in part.values()]
    )
    cases = []
    for part, found in scans.items():
        labels = _labels(root / _PARTS[part], ending, found, notes)
        relative = [PurePath(part, name) for name in found]
        subjects = naming.subject_names(relative, [""] * len(found))
        for (name, channels), subject in zip(found.items(), subjects, strict=True):
            cases.append(
                Case(
                    f"{part}/{name}",
                    subject,
                    _complete(channels, files, name, root / part),
                    labels.get(name),
                )
            )
    if not cases:
        example = f"imagesTr/CASE_0000{ending or '.nii.gz'}"
        raise DataError(
            f"{printable(root)}: no case found; looked for files like {example} in imagesTr and imagesTs"
        )
    ids = naming.case_ids([PurePath(case.id) for case in cases], [""] * len(cases))
    cases = sorted(
        (replace(case, id=id) for case, id in zip(cases, ids, strict=True)), key=case_key
    )
    unlabelled = sum(case.label is None for case in cases)
    if unlabelled:
        notes.append(f"{unlabelled} of {len(cases)} cases have no label")
    regions = _regions(content, root, notes)
    classes = _classes_of(content, regions) if regions else _classes(content, root, notes)
    return Dataset(root, "nnunet", tuple(cases), channel_names, classes, tuple(notes), regions)


def _folders(root: Path) -> list[Path]:
    """The data set itself, or those of the folder that holds several."""
    if not root.is_dir():
        return [root]
    inside = sorted(
        path for path in root.iterdir() if _DATASET.fullmatch(path.name) and path.is_dir()
    )
    return inside if inside and not any((root / part).is_dir() for part in _PARTS) else [root]


def _ending(content: dict[str, Any], root: Path) -> str | None:
    ending = content.get("file_ending")
    if ending is None:
        return None
    if not isinstance(ending, str) or suffix(Path("scan" + ending)) != ending.lower():
        table, what = printable(root / "dataset.json"), printable(str(ending)[:20])
        raise DataError(
            f"{table}: scans with file_ending '{what}' cannot be read; convert them to .nii.gz"
        )
    return ending


def _scans(folder: Path, ending: str | None, notes: list[str]) -> dict[str, _Files]:
    """Per case the file of each channel."""
    scans: dict[str, _Files] = defaultdict(dict)
    others = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _CHANNEL.fullmatch(naming.stem(path, suffix(path)))
        if (
            match is None
            or not suffix(path)
            or (ending and not path.name.endswith(ending))
            or path.name[0] == "."
        ):
            others.append(path)
        elif twin := scans[match[1]].get(int(match[2])):
            raise DataError(
                f"{printable(path)} and {printable(twin.name)} are one channel of one case; keep one"
            )
        else:
            scans[match[1]][int(match[2])] = path
    if others:
        expected = f"CASE_0000{ending or ''}"
        notes.append(
            f"{folder.name}: {counted(len(others), 'file')} left out, not named like {expected}: {few(others)}"
        )
    return dict(scans)


def _channels(
    content: dict[str, Any], root: Path, scans: list[_Files]
) -> tuple[tuple[str, ...], int]:
    """The channels' names, and how many files hold them."""
    highest = max((number for files in scans for number in files), default=0)
    names = content.get("channel_names", content.get("modality"))
    if names is None:
        count = highest + 1
        one = scans[0].get(0) if scans and count == 1 else None
        return (
            channels_of(one) if one else tuple(f"channel {number}" for number in range(count))
        ), count
    numbered = isinstance(names, dict) and set(names) == {
        str(number) for number in range(len(names))
    }
    if not numbered or not names or not all(isinstance(name, str) for name in names.values()):
        example = '{"0": "T1", "1": "CT"}'
        raise DataError(
            f"{printable(root / 'dataset.json')}: 'channel_names' must number them from 0, as in {example}"
        )
    in_order = tuple(names[str(number)] for number in range(len(names)))
    colour = (
        len(names) == 3
        and scans
        and all(set(files) == {0} and suffix(files[0]) in SUFFIXES_2D for files in scans)
    )
    return in_order, 1 if colour else len(names)


def _complete(found: _Files, count: int, case: str, folder: Path) -> tuple[Path, ...]:
    missing = [f"_{number:04d}" for number in range(count) if number not in found]
    extra = [f"_{number:04d}" for number in found if number >= count]
    where = f"{printable(folder)}: case {printable(case)}"
    if missing:
        raise DataError(
            f"{where} has no channel {', '.join(missing[:4])} of {count}; add the file or remove the case"
        )
    if extra:
        raise DataError(
            f"{where} has a channel {', '.join(extra[:4])}, but {count} are declared; remove it or declare it"
        )
    return tuple(found[number] for number in range(count))


def _labels(
    folder: Path, ending: str | None, scans: dict[str, _Files], notes: list[str]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    alone = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = naming.stem(path, suffix(path))
        if (
            path.name[0] == "."
            or not suffix(path)
            or (ending and not path.name.endswith(ending))
            or name not in scans
        ):
            alone.append(path)
        elif name in found:
            raise DataError(
                f"{printable(path)} and {printable(found[name].name)} are labels of one case; keep one"
            )
        else:
            found[name] = path
    if alone:
        notes.append(
            f"{folder.name}: {counted(len(alone), 'file')} left out, which no case matches: {few(alone)}"
        )
    return found


def _regions(
    content: dict[str, Any], root: Path, notes: list[str]
) -> dict[str, tuple[int, ...]] | None:
    """The regions of a data set that declares `labels` as lists of values, in their order; else None.

    What is to be ignored is none of them.
    """
    names = content.get("labels")
    if not isinstance(names, dict) or not any(isinstance(value, list) for value in names.values()):
        return None
    found = {}
    for name, value in names.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(number) is int and 0 <= number < 2**16 for number in values):
            example = '{"background": 0, "whole": [1, 2, 3], "core": [2, 3]}'
            raise DataError(
                f"{printable(root / 'dataset.json')}: 'labels' must give each region its values, as in {example}"
            )
        if values != [0] and name != "ignore":
            found[name] = tuple(sorted(set(values) - {0}))
    if "ignore" in names:
        notes.append("the class 'ignore' is treated like any other class, and belongs to no region")
    return found


def _classes_of(content: dict[str, Any], regions: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """The classes that regions are made of, which have no names of their own, and what is to be ignored.

    Not all labels need hold each of them.
    """
    ignored = content["labels"].get("ignore", [])
    names = {value: "ignore" for value in (ignored if isinstance(ignored, list) else [ignored])}
    names |= {value: f"class {value}" for each in regions.values() for value in each}
    return dict(sorted((names | {0: "background"}).items()))


def _classes(content: dict[str, Any], root: Path, notes: list[str]) -> dict[int, str] | None:
    names = content.get("labels")
    if names is None:
        return None
    table = printable(root / "dataset.json")
    numbers = list(names.values()) if isinstance(names, dict) else []
    if not numbers or not all(type(number) is int and 0 <= number < 2**16 for number in numbers):
        raise DataError(
            f'{table}: \'labels\' must give each class its value, as in {{"background": 0, "tumour": 1}}'
        )
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{table}: 'labels' gives two classes the same value; give each its own")
    if "ignore" in names:
        notes.append("the class 'ignore' is treated like any other class")
    return {number: name for name, number in sorted(names.items(), key=lambda item: item[1])}
