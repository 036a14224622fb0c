"""BraTS: a folder per case with `_t1`, `_t1ce`, `_t2`, `_flair`, `_seg`, or `-t1n`, `-t1c`, `-t2w`, `-t2f`, `-seg`.

The first names are those of 2020 and before (labels 0, 1, 2, 4), the second those since 2023 (labels 0 to 3). Folders
may be nested (`HGG/`, `LGG/`). The channels are t1, t1ce, t2, flair, in this order, whatever the files are called. A
case that lacks one is listed with the name of the file that should be there, so that it is rejected by that name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from selfvox.data import naming
from selfvox.data.formats import image as images
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import counted, few, unreadable
from selfvox.errors import DataError

_CHANNELS = ("t1", "t1ce", "t2", "flair")
_NAMED = {"_": ("t1", "t1ce", "t2", "flair", "seg"), "-": ("t1n", "t1c", "t2w", "t2f", "seg")}
_FILE = re.compile(
    r"(.+)(?:(_)(t1|t1ce|t2|flair|seg)|(-)(t1n|t1c|t2w|t2f|seg))", re.IGNORECASE | re.DOTALL
)
# BraTS-GLI-00005-000 and -001 are two visits of one patient
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}", re.IGNORECASE | re.ASCII)
_ENOUGH = 3  # modalities of one case, to recognise the layout although one is missing
_LOOKED_AT = 16

_CORE, _OEDEMA, _ENHANCING = "necrotic core", "oedema", "enhancing tumour"
_UNTIL_2020 = {0: "background", 1: _CORE, 2: _OEDEMA, 4: _ENHANCING}
_SINCE_2023 = {0: "background", 1: _CORE, 2: _OEDEMA, 3: _ENHANCING}
_SINCE_2024 = _SINCE_2023 | {4: "resection cavity"}

_Key = tuple[Path, str, str]  # folder, case, the sign before the modality
_Files = dict[str, Path]  # modality, as the file is called -> file


def looks_like(root: Path) -> bool:
    """A folder in which, at any depth, three of the four modalities of one case lie side by side."""
    for here, files in _walk(root):
        with contextlib.suppress(DataError):  # one doubtful folder does not decide
            cases, _ = _sorted(here, files)
            if any(len(found.keys() - {"seg"}) >= _ENOUGH for found in cases.values()):
                return True
    return False


def read_dataset(root: Path) -> Dataset:
    """List the cases, with their segmentation where there is one."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: not a folder; name the one that holds the cases")
    cases: dict[_Key, _Files] = {}
    others: list[Path] = []
    for here, names in _walk(root, unreadable):
        found, foreign = _sorted(here, names)
        cases |= {key: files for key, files in found.items() if files.keys() != {"seg"}}
        others += foreign
    if not cases:
        raise DataError(
            f"{printable(root)}: holds no BraTS case; looked for CASE_t1ce.nii.gz or CASE-t1c.nii.gz"
        )
    places = [PurePath(folder.relative_to(root), name) for folder, name, _ in cases]
    ids = naming.case_ids(places, [""] * len(places))
    listed, lacking = [], []
    labels: dict[str, list[Path]] = {}
    for id, (key, files) in zip(ids, cases.items(), strict=True):
        paths = _complete(key, files)
        lacking += [path for path in paths if not path.is_file()]
        listed.append(Case(id, _subject(key[1]), paths, files.get("seg")))
        if "seg" in files:
            labels.setdefault(key[2], []).append(files["seg"])
    notes = []
    if lacking:
        notes.append(
            f"{counted(len(lacking), 'modality file')} missing, so their cases are rejected: {few(lacking)}"
        )
    unlabelled = sum(case.label is None for case in listed)
    if unlabelled:
        notes.append(f"{unlabelled} of {len(listed)} cases have no label")
    if others:
        notes.append(
            f"{counted(len(others), 'scan')} left out, not named like those of a case: {few(others)}"
        )
    classes, reason = _classes(labels, root)
    regions = _regions(classes) if classes else None
    return Dataset(
        root,
        "brats",
        tuple(sorted(listed, key=case_key)),
        _CHANNELS,
        classes,
        (*notes, *reason),
        regions,
    )


def _walk(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with its visible files; links to folders are not followed."""
    for here, folders, files in os.walk(root, onerror=onerror):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__MACOSX"
        )
        yield Path(here), sorted(name for name in files if not name.startswith("."))


def _sorted(here: Path, names: Sequence[str]) -> tuple[dict[_Key, _Files], list[Path]]:
    """The cases whose files lie in one folder, and the volumes that belong to none."""
    cases: dict[_Key, _Files] = defaultdict(dict)
    others = []
    for path in map(here.joinpath, names):
        ending = suffix(path)
        if not ending or ending in SUFFIXES_2D:
            continue
        match = _FILE.fullmatch(naming.stem(path, ending))
        if match is None:
            others.append(path)
            continue
        sign, modality = match[2] or match[4], (match[3] or match[5]).lower()
        files = cases[here, match[1], sign]
        if modality in files:
            raise DataError(
                f"{printable(path)} and {printable(files[modality].name)} are one channel of one case; keep one"
            )
        files[modality] = path
    return dict(cases), others


def _complete(key: _Key, files: _Files) -> tuple[Path, ...]:
    """The files of the channels in order; of one that is missing, what it should be called."""
    folder, name, sign = key
    ending = suffix(next(iter(files.values())))
    return tuple(
        files.get(each, folder / f"{name}{sign}{each}{ending}") for each in _NAMED[sign][:4]
    )


def _subject(name: str) -> str:
    match = _VISIT.fullmatch(name)
    return naming.safe_name(match[1] if match else name)


def _classes(
    labels: Mapping[str, Sequence[Path]], root: Path
) -> tuple[dict[int, str] | None, tuple[str, ...]]:
    """The classes of labels by the sign in their names, and a note where they belie these.

    Raises:
        DataError: 4 is enhancing tumour in some of them and another class, or none, in others.
    """
    if not labels:
        return None, ()
    if "-" not in labels:
        return _UNTIL_2020, ()
    classes, notes = _since_2023(_values(labels["-"]))
    if "_" in labels and classes != _UNTIL_2020 and 4 in {*classes, *_values(labels["_"])}:
        raise DataError(
            f"{printable(root)}: holds cases of several years, in whose labels 4 is not the same; "
            "put each year in its own folder"
        )
    return classes, notes


def _since_2023(met: set[int]) -> tuple[dict[int, str], tuple[str, ...]]:
    """The classes of files named as since 2023, by what their labels hold."""
    # the names do not settle it: 2024 added a class, and others keep the older numbers
    if {3, 4} <= met:
        return _SINCE_2024, ()
    if 4 in met:
        return _UNTIL_2020, (
            "the labels hold 4 and not 3: taken for the numbers of 2020, where 4 is enhancing tumour",
        )
    return _SINCE_2023, ()


def _regions(classes: dict[int, str]) -> dict[str, tuple[int, ...]]:
    """What the challenge scores: whole tumour, tumour core, enhancing tumour, and since 2024 the resection cavity."""
    enhancing = next(value for value, name in classes.items() if name == _ENHANCING)
    regions = {"WT": (1, 2, enhancing), "TC": (1, enhancing), "ET": (enhancing,)}
    return regions | {"RC": (4,)} if classes == _SINCE_2024 else regions


def _values(labels: Sequence[Path]) -> set[int]:
    """What occurs in some of the labels that can be read; preparing says what is wrong with the others."""
    met: set[int] = set()
    for place in np.linspace(0, len(labels) - 1, min(_LOOKED_AT, len(labels))):
        path = labels[round(place)]
        try:
            met |= {
                int(value) for value in np.unique(images.read_label(path, images.read_grid(path)))
            }
        except DataError:
            continue
    return met
