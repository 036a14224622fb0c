"""BraTS: a folder per case with `_t1`, `_t1ce`, `_t2`, `_flair`, `_seg`, or `-t1n` to `-seg`.

The first names are those of 2020 and before (labels 0, 1, 2, 4); the second, `-t1n`, `-t1c`,
`-t2w`, `-t2f`, `-seg`, those since 2023 (labels 0 to 3). Folders may be nested (`HGG/`, `LGG/`).
The channels are t1, t1ce, t2, flair, in this order, whatever the files are called. A case that
lacks one is listed with the name of the missing file, so that it is rejected by that name.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from selfvox.data import naming
from selfvox.data.formats import image as images
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import count_of, printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import (
    first_names,
    raise_unlistable,
    unlabelled_note,
    walk_visible,
)
from selfvox.errors import DataError

_CHANNELS = ("t1", "t1ce", "t2", "flair")
# separator before the modality -> how the channels are called in file names
_FILE_MODALITIES = {"_": ("t1", "t1ce", "t2", "flair"), "-": ("t1n", "t1c", "t2w", "t2f")}
_FILE = re.compile(
    r"(.+)(?:(_)(t1|t1ce|t2|flair|seg)|(-)(t1n|t1c|t2w|t2f|seg))", re.IGNORECASE | re.DOTALL
)
# BraTS-GLI-00005-000 and -001 are two visits of one patient
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}", re.IGNORECASE | re.ASCII)
_MIN_MODALITIES = 3  # of one case, so that the layout is recognised although one is missing
_MAX_LABELS_READ = 16  # to learn which classes occur

_CORE = "necrotic core"
_OEDEMA = "oedema"
_ENHANCING = "enhancing tumour"
_UNTIL_2020 = {0: "background", 1: _CORE, 2: _OEDEMA, 4: _ENHANCING}
_SINCE_2023 = {0: "background", 1: _CORE, 2: _OEDEMA, 3: _ENHANCING}
_SINCE_2024 = _SINCE_2023 | {4: "resection cavity"}

_Key = tuple[Path, str, str]  # folder, case, separator before the modality
_Files = dict[str, Path]  # modality, as the file is called -> file


def looks_like(root: Path) -> bool:
    """A folder with three of the four modalities of one case in one folder, at any depth."""
    for folder, files in walk_visible(root):
        with contextlib.suppress(DataError):  # one doubtful folder does not decide
            cases, _ = _group(folder, files)
            if any(len(case.keys() - {"seg"}) >= _MIN_MODALITIES for case in cases.values()):
                return True
    return False


def read_dataset(root: Path) -> Dataset:
    """List the cases, with their segmentation where there is one.

    Raises:
        DataError: there is none, or the labels of several years are mixed.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: not a folder; name the one with the cases in it")
    files_of, foreign = _find_cases(root)
    if not files_of:
        raise DataError(
            f"{printable(root)}: no BraTS case found; "
            "looked for CASE_t1ce.nii.gz or CASE-t1c.nii.gz"
        )
    paths = [PurePath(folder.relative_to(root), name) for folder, name, _ in files_of]
    ids = naming.case_ids(paths, [""] * len(paths))
    cases = [
        Case(id, _subject(key[1]), _channel_files(key, files), files.get("seg"), listed=True)
        for id, (key, files) in zip(ids, files_of.items(), strict=True)
    ]
    labels: dict[str, list[Path]] = defaultdict(list)
    for (_, _, separator), files in files_of.items():
        if "seg" in files:
            labels[separator].append(files["seg"])
    notes = _notes(cases, foreign)
    classes, class_note = _classes(labels, root)
    cases.sort(key=case_key)
    return Dataset(
        root=root,
        source="brats",
        cases=tuple(cases),
        channel_names=_CHANNELS,
        classes=classes,
        notes=(*notes, *class_note),
        regions=_regions(classes) if classes else None,
    )


def tumour_regions(core: int, oedema: int, enhancing: int) -> dict[str, tuple[int, ...]]:
    """The regions that BraTS scores, as sets of label values.

    Whole tumour, tumour core and enhancing tumour (Menze et al. 2015).
    """
    return {
        "WT": tuple(sorted((core, oedema, enhancing))),
        "TC": tuple(sorted((core, enhancing))),
        "ET": (enhancing,),
    }


def _find_cases(root: Path) -> tuple[dict[_Key, _Files], list[Path]]:
    """The files of each case, at any depth, and the volumes that belong to none."""
    files_of: dict[_Key, _Files] = {}
    foreign: list[Path] = []
    for folder, names in walk_visible(root, raise_unlistable):
        cases, foreign_here = _group(folder, names)
        # a segmentation alone is no case
        files_of |= {key: files for key, files in cases.items() if files.keys() != {"seg"}}
        foreign += foreign_here
    return files_of, foreign


def _group(folder: Path, names: Sequence[str]) -> tuple[dict[_Key, _Files], list[Path]]:
    """The cases with files in one folder, and the volumes that belong to none."""
    cases: dict[_Key, _Files] = defaultdict(dict)
    foreign = []
    for path in map(folder.joinpath, names):
        ending = suffix(path)
        if not ending or ending in SUFFIXES_2D:
            continue
        match = _FILE.fullmatch(naming.stem(path, ending))
        if match is None:
            foreign.append(path)
            continue
        separator = match[2] or match[4]
        modality = (match[3] or match[5]).lower()
        files = cases[folder, match[1], separator]
        if modality in files:
            raise DataError(
                f"{printable(path)} and {printable(files[modality].name)} "
                "are one channel of one case; keep one"
            )
        files[modality] = path
    return dict(cases), foreign


def _channel_files(key: _Key, files: _Files) -> tuple[Path, ...]:
    """The files of the channels in order; for a missing one, the path that it should have."""
    folder, name, separator = key
    # a missing file would end like the others
    ending = suffix(next(iter(files.values())))
    return tuple(
        files.get(modality, folder / f"{name}{separator}{modality}{ending}")
        for modality in _FILE_MODALITIES[separator]
    )


def _subject(name: str) -> str:
    match = _VISIT.fullmatch(name)
    return naming.safe_name(match[1] if match else name)


def _notes(cases: Sequence[Case], foreign: Sequence[Path]) -> list[str]:
    notes = []
    missing = [path for case in cases for path in case.images if not path.is_file()]
    if missing:
        notes.append(
            f"{count_of(len(missing), 'modality file')} missing, so their cases are rejected: "
            f"{first_names(missing)}"
        )
    notes += unlabelled_note(cases)
    if foreign:
        notes.append(
            f"{count_of(len(foreign), 'scan')} left out, not named like those of a case: "
            f"{first_names(foreign)}"
        )
    return notes


def _classes(
    labels: Mapping[str, Sequence[Path]], root: Path
) -> tuple[dict[int, str] | None, tuple[str, ...]]:
    """The classes of labels by the separator in their names, and a note where values disagree.

    Raises:
        DataError: 4 is enhancing tumour in some of them and another class, or none, in others.
    """
    if not labels:
        return None, ()
    if "-" not in labels:
        return _UNTIL_2020, ()
    classes, notes = _since_2023(_values(labels["-"]))
    # cases of both years: where 4 occurs it has to be enhancing tumour in all of them
    if "_" in labels and classes != _UNTIL_2020 and 4 in {*classes, *_values(labels["_"])}:
        raise DataError(
            f"{printable(root)}: cases of several years, and 4 is not the same class in all; "
            "put each year in its own folder"
        )
    return classes, notes


def _since_2023(values: set[int]) -> tuple[dict[int, str], tuple[str, ...]]:
    """The classes of files named as since 2023, by the values that occur in their labels."""
    # the names do not settle it: 2024 added a class, and others keep the older numbers
    if {3, 4} <= values:
        return _SINCE_2024, ()
    if 4 in values:
        return _UNTIL_2020, (
            "4 occurs in the labels and 3 does not: taken for the numbers of 2020, "
            "where 4 is enhancing tumour",
        )
    return _SINCE_2023, ()


def _regions(classes: dict[int, str]) -> dict[str, tuple[int, ...]]:
    """The regions that the challenge scores; since 2024 the resection cavity too."""
    value = {name: number for number, name in classes.items()}
    regions = tumour_regions(value[_CORE], value[_OEDEMA], value[_ENHANCING])
    return regions | {"RC": (4,)} if classes == _SINCE_2024 else regions


def _values(labels: Sequence[Path]) -> set[int]:
    """The values in some of the labels, spread evenly; `prepare` reports unreadable ones."""
    values: set[int] = set()
    count = min(_MAX_LABELS_READ, len(labels))
    for position in np.linspace(0, len(labels) - 1, count):
        path = labels[round(position)]
        with contextlib.suppress(DataError):
            label = images.read_label(path, images.read_grid(path))
            values |= {int(value) for value in np.unique(label)}
    return values
