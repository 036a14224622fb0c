"""nnU-Net's raw data: `imagesTr/CASE_0000.nii.gz`, a file per channel, and `labelsTr/CASE.nii.gz`.

Cases of `imagesTs` join, with their label where `labelsTs` has one. `dataset.json` names channels,
classes and the file ending; without it the channels are counted. A colour picture may have its
three channels in one file. A folder such as `imagesTs` may be named itself, without labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from selfvox.data import naming
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import count_of, printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import (
    channels_of,
    first_names,
    numbered_names,
    unlabelled_note,
)
from selfvox.errors import DataError
from selfvox.runs import strict_json

_LABEL_FOLDERS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)  # four digits
_DATASET = re.compile(r"Dataset\d{3}_.+", re.ASCII)  # as nnU-Net names its folders
_Files = dict[int, Path]  # channel number -> file
_Regions = dict[str, tuple[int, ...]]


def looks_like(root: Path) -> bool:
    """A folder with numbered channels in `imagesTr` or `imagesTs`, or such a folder itself."""
    try:
        return _is_folder_of_channels(root) or any(
            any((folder / images).glob("*_0000.*"))
            for folder in _dataset_folders(root)
            for images in _LABEL_FOLDERS
        )
    except OSError:
        return False


def read_dataset(root: Path) -> Dataset:
    """List the cases of one data set.

    Raises:
        DataError: there is none, or several; a channel is missing; `dataset.json` is damaged.
    """
    folders = _dataset_folders(root)
    if len(folders) != 1:
        raise DataError(
            f"{printable(root)}: several data sets ({first_names(folders)}); name one of them"
        )
    root = folders[0]
    content = _read_settings(root)
    ending = _ending(content, root)
    notes: list[str] = []
    has_folders = any((root / images).is_dir() for images in _LABEL_FOLDERS)
    image_folders = list(_LABEL_FOLDERS) if has_folders or not root.is_dir() else [""]
    scans = {images: _scans(root / images, ending, notes) for images in image_folders}
    files_per_case = [files for by_name in scans.values() for files in by_name.values()]
    channel_names, file_count = _channels(content, root, files_per_case)
    cases = []
    for images, by_name in scans.items():
        label_folder = _LABEL_FOLDERS.get(images)
        labels = _labels(root / label_folder, ending, by_name, notes) if label_folder else {}
        cases += _cases(root / images, by_name, file_count, labels)
    if not cases:
        example = f"imagesTr/CASE_0000{ending or '.nii.gz'}"
        raise DataError(
            f"{printable(root)}: no case found; "
            f"looked for files like {example} in imagesTr and imagesTs"
        )
    cases = _with_unique_ids(cases)
    cases.sort(key=case_key)
    notes += unlabelled_note(cases)
    regions = _regions(content, root, notes)
    if regions:
        classes: dict[int, str] | None = _classes_of_regions(content, regions)
    else:
        classes = _classes(content, root, notes)
    return Dataset(
        root,
        "nnunet",
        tuple(cases),
        channel_names,
        classes,
        tuple(notes),
        regions,
        guesses_subjects=True,
    )


def _dataset_folders(root: Path) -> list[Path]:
    """The data set itself, or those inside a folder of `DatasetXXX_NAME`."""
    if not root.is_dir():
        return [root]
    inside = sorted(
        path for path in root.iterdir() if _DATASET.fullmatch(path.name) and path.is_dir()
    )
    is_dataset = any((root / images).is_dir() for images in _LABEL_FOLDERS)
    return inside if inside and not is_dataset else [root]


def _is_folder_of_channels(folder: Path) -> bool:
    """Whether all scans in a folder are called like channels, and all cases have the same ones.

    Of `img_0000`, `img_0001`, ... the first part would be one case, so these are scans of their
    own.
    """
    channels: dict[str, set[int]] = defaultdict(set)
    for path in _list_folder(folder):
        if path.name.startswith(".") or not suffix(path):
            continue
        match = _CHANNEL.fullmatch(naming.stem(path, suffix(path)))
        if match is None:
            return False
        channels[match[1]].add(int(match[2]))
    counts = {len(numbers) for numbers in channels.values()}
    if len(counts) != 1 or any(max(numbers) >= len(numbers) for numbers in channels.values()):
        return False
    return counts == {1} or len(channels) > 1


def _read_settings(root: Path) -> dict[str, Any]:
    """The contents of `dataset.json`; without the file nothing is declared."""
    table = root / "dataset.json"
    if not table.exists():
        return {}
    content = strict_json.read_json(table)
    if not isinstance(content, dict):
        raise DataError(f"{printable(table)}: not an object; is it an nnU-Net dataset.json?")
    return content


def _ending(content: Mapping[str, Any], root: Path) -> str | None:
    ending = content.get("file_ending")
    if ending is None:
        return None
    if not isinstance(ending, str) or suffix(Path("scan" + ending)) != ending.lower():
        raise DataError(
            f"{printable(root / 'dataset.json')}: scans with file_ending "
            f"'{printable(str(ending)[:20])}' cannot be read; convert them to .nii.gz"
        )
    return ending


def _is_scan(path: Path, ending: str | None) -> bool:
    """Whether a file is visible, readable and of the declared ending, if any."""
    if path.name.startswith(".") or not suffix(path):
        return False
    return ending is None or path.name.endswith(ending)


def _list_folder(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _scans(folder: Path, ending: str | None, notes: list[str]) -> dict[str, _Files]:
    """The file of each channel by the name of the case."""
    scans: dict[str, _Files] = defaultdict(dict)
    foreign = []
    for path in _list_folder(folder):
        match = _CHANNEL.fullmatch(naming.stem(path, suffix(path)))
        if match is None or not _is_scan(path, ending):
            foreign.append(path)
            continue
        channel = int(match[2])
        files = scans[match[1]]
        if channel in files:
            raise DataError(
                f"{printable(path)} and {printable(files[channel].name)} "
                "are one channel of one case; keep one"
            )
        files[channel] = path
    if foreign:
        notes.append(
            f"{folder.name}: {count_of(len(foreign), 'file')} left out, "
            f"not named like CASE_0000{ending or ''}: {first_names(foreign)}"
        )
    return dict(scans)


def _channels(
    content: Mapping[str, Any], root: Path, files_per_case: Sequence[_Files]
) -> tuple[tuple[str, ...], int]:
    """The channels' names, and the number of files that a case has."""
    declared = content.get("channel_names", content.get("modality"))
    if declared is None:
        return _count_channels(files_per_case)
    names = numbered_names(declared)
    if names is None:
        example = '{"0": "T1", "1": "CT"}'
        raise DataError(
            f"{printable(root / 'dataset.json')}: 'channel_names' must number them from 0, "
            f"as in {example}"
        )
    # as nnU-Net's reader of natural pictures has it
    one_colour_picture = (
        len(names) == 3
        and bool(files_per_case)
        and all(set(files) == {0} and suffix(files[0]) in SUFFIXES_2D for files in files_per_case)
    )
    return names, 1 if one_colour_picture else len(names)


def _count_channels(files_per_case: Sequence[_Files]) -> tuple[tuple[str, ...], int]:
    numbers = [number for files in files_per_case for number in files]
    count = max(numbers, default=0) + 1
    if numbers and count == 1:
        return channels_of(files_per_case[0][0]), 1
    return tuple(f"channel {number}" for number in range(count)), count


def _cases(
    folder: Path, scans: Mapping[str, _Files], file_count: int, labels: Mapping[str, Path]
) -> list[Case]:
    """The cases of one folder of images, for now with its name in their ids."""
    paths = [PurePath(folder.name, name) for name in scans]
    # cases have no file ending in their names
    subjects = naming.subject_names(paths, [""] * len(paths))
    return [
        Case(
            id=path.as_posix(),
            subject=subject,
            images=_complete(files, file_count, name, folder),
            label=labels.get(name),
            listed=True,
        )
        for path, subject, (name, files) in zip(paths, subjects, scans.items(), strict=True)
    ]


def _with_unique_ids(cases: Sequence[Case]) -> list[Case]:
    """The cases called by their names alone, unless a name occurs in several folders."""
    ids = naming.case_ids([PurePath(case.id) for case in cases], [""] * len(cases))
    return [replace(case, id=id) for case, id in zip(cases, ids, strict=True)]


def _complete(files: _Files, count: int, case: str, folder: Path) -> tuple[Path, ...]:
    """The files of channels 0 to `count` - 1."""
    missing = [f"_{number:04d}" for number in range(count) if number not in files]
    surplus = [f"_{number:04d}" for number in files if number >= count]
    location = f"{printable(folder)}: case {printable(case)}"
    if missing:
        raise DataError(
            f"{location} has no channel {', '.join(missing[:4])} of {count}; "
            "add the file or remove the case"
        )
    if surplus:
        raise DataError(
            f"{location} has a channel {', '.join(surplus[:4])}, but {count} are declared; "
            "remove it or declare it"
        )
    return tuple(files[number] for number in range(count))


def _labels(
    folder: Path, ending: str | None, scans: Mapping[str, _Files], notes: list[str]
) -> dict[str, Path]:
    """The label of each case that has one."""
    labels: dict[str, Path] = {}
    unmatched = []
    for path in _list_folder(folder):
        name = naming.stem(path, suffix(path))
        if name not in scans:
            # Learn2Reg's labels are called as the first channel is
            name = name.removesuffix("_0000")
        if name not in scans or not _is_scan(path, ending):
            unmatched.append(path)
        elif name in labels:
            raise DataError(
                f"{printable(path)} and {printable(labels[name].name)} "
                "are labels of one case; keep one"
            )
        else:
            labels[name] = path
    if unmatched:
        notes.append(
            f"{folder.name}: {count_of(len(unmatched), 'file')} left out, which no case matches: "
            f"{first_names(unmatched)}"
        )
    return labels


def _regions(content: Mapping[str, Any], root: Path, notes: list[str]) -> _Regions | None:
    """The regions of a data set that declares `labels` as lists of values, in their order.

    None of another data set. The values to be ignored are no region.
    """
    declared = content.get("labels")
    if not isinstance(declared, dict):
        return None
    if not any(isinstance(value, list) for value in declared.values()):
        return None
    regions = {}
    for name, value in declared.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(map(_is_label_value, values)):
            example = '{"background": 0, "whole": [1, 2, 3], "core": [2, 3]}'
            raise DataError(
                f"{printable(root / 'dataset.json')}: 'labels' must give each region its values, "
                f"as in {example}"
            )
        if values != [0] and name != "ignore":
            # 0 is the background, which no region contains
            regions[name] = tuple(sorted(set(values) - {0}))
    if "ignore" in declared:
        notes.append("the class 'ignore' is treated like any other class, and belongs to no region")
    return regions


def _classes_of_regions(content: Mapping[str, Any], regions: _Regions) -> dict[int, str]:
    """The classes that regions consist of, which have no names of their own, and `ignore`.

    A class may be absent from some labels, or from all.
    """
    ignored = content["labels"].get("ignore", [])
    names = {value: "ignore" for value in (ignored if isinstance(ignored, list) else [ignored])}
    for values in regions.values():
        names |= {value: f"class {value}" for value in values}
    names[0] = "background"
    return dict(sorted(names.items()))


def _classes(content: Mapping[str, Any], root: Path, notes: list[str]) -> dict[int, str] | None:
    names = content.get("labels")
    if names is None:
        return None
    table = printable(root / "dataset.json")
    values = list(names.values()) if isinstance(names, dict) else []
    if not values or not all(map(_is_label_value, values)):
        example = '{"background": 0, "tumour": 1}'
        raise DataError(f"{table}: 'labels' must give each class its value, as in {example}")
    if len(set(values)) < len(values):
        raise DataError(f"{table}: 'labels' gives two classes the same value; give each its own")
    if "ignore" in names:
        notes.append("the class 'ignore' is treated like any other class")
    return {value: name for name, value in sorted(names.items(), key=lambda item: item[1])}


def _is_label_value(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**16  # `type`: True is an int, too
