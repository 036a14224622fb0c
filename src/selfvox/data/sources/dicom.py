"""DICOM: every series in a folder and its subfolders is a case; no name, date or number of a patient is kept.

A case is called `series-NUMBER-HASH`, the hash being one of the SeriesInstanceUID. Scans of one patient are one
subject, called after one of the patient's series. A series whose slices have several orientations, or are of several
patients, becomes one case for each. Of several files with one place and the same pixels, one counts.
Localisers, screenshots, single images and what holds no image (SEG, RTSTRUCT, SR, ...) are left out and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom import uid

from selfvox.data.formats.dicom_file import DicomHeader, is_dicom, read_header
from selfvox.data.formats.image import SUFFIXES_3D, suffix
from selfvox.data.naming import printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import counted, unreadable
from selfvox.errors import DataError, UsageError, did_you_mean

_OWN_ENDINGS = (".dcm", ".dicom", ".ima")
_ENDINGS = ("", *_OWN_ENDINGS)
_NOT_DATA = {"dicomdir", "thumbs.db", "desktop.ini"}
_NO_IMAGES = {
    "SEG",
    "RTSTRUCT",
    "RTDOSE",
    "RTPLAN",
    "RTIMAGE",
    "SR",
    "PR",
    "KO",
    "DOC",
    "REG",
    "FID",
    "RWV",
    "PLAN",
}
_SCREENSHOTS = uid.SecondaryCaptureImageStorage
_FEWEST = 3  # slices of a volume
_SAME_DIRECTION = 1e-3

_Member = tuple[Path, DicomHeader]


def looks_like(root: Path) -> bool:
    """A DICOM file, or a folder that holds some and no other kind of volume."""
    if root.is_file():
        return suffix(root) == "" and is_dicom(root)
    found = False
    for path in _walk(root):
        if suffix(path) in SUFFIXES_3D:
            return False
        found = found or (_may_be(path) and is_dicom(path))
    return found


def read_dataset(root: Path) -> Dataset:
    """List the series."""
    paths = (
        [root] if root.is_file() else [path for path in _walk(root, strict=True) if _may_be(path)]
    )
    files = [path for path in paths if is_dicom(path)]
    if not files:
        raise DataError(f"{printable(root)}: holds no DICOM files; looked in all subfolders")
    members: list[_Member] = []
    # an empty or forbidden slice at an end leaves no gap to be seen
    damaged = sum(path.suffix.lower() in _OWN_ENDINGS for path in set(paths) - set(files))
    left_out = Counter[str]()
    for path in files:
        about = read_header(path)
        if about is None or not about.series:
            damaged += 1
        elif reason := _useless(about):
            left_out[reason] += 1
        else:
            members.append((path, about))
    stacks = _stacks(members, left_out)
    # without their names, which may be a patient's
    notes = [f"{counted(damaged, 'file')} not readable as DICOM, left out"] if damaged else []
    notes += [f"left out: {count} {reason}" for reason, count in sorted(left_out.items())]
    if not stacks:
        raise DataError(
            f"{printable(root)}: holds no series of slices; {'; '.join(notes) or 'only single images'}"
        )
    subjects = _subjects(stacks)
    cases = [
        Case(id, subject, tuple(path for path, _ in stack), stacked=True)
        for (id, stack), subject in zip(stacks.items(), subjects, strict=True)
    ]
    cases.sort(key=case_key)
    modalities = {about.modality for stack in stacks.values() for _, about in stack[:1]}
    notes += _remarks(stacks, subjects, modalities)
    name = modalities.pop() if len(modalities) == 1 else ""
    return Dataset(
        root, "dicom", tuple(cases), (name if name.isalnum() else "image",), None, tuple(notes)
    )


def choose(dataset: Dataset, choice: str) -> Dataset:
    """The same series; with the choice `allow-gap`, their missing slices will be interpolated."""
    if choice != "allow-gap":
        raise UsageError(
            f"source: dicom knows no '{printable(choice)}'{did_you_mean(choice, ['allow-gap'])}"
        )
    return replace(dataset, cases=tuple(replace(case, allow_gap=True) for case in dataset.cases))


def _walk(root: Path, strict: bool = False) -> Iterator[Path]:
    for here, folders, files in os.walk(root, onerror=unreadable if strict else None):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name != "__MACOSX"
        )
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _may_be(path: Path) -> bool:
    """By its name: `.dcm`, none, or the last number of a UID."""
    ending = path.suffix.lower()
    return path.name.lower() not in _NOT_DATA and (ending in _ENDINGS or ending[1:].isdecimal())


def _useless(about: DicomHeader) -> str:
    """Why a file is no slice of a scan; "" where it may be one."""
    if not about.has_pixels or about.modality in _NO_IMAGES:
        return "without an image of their own (such as SEG, RTSTRUCT, SR)"
    if "LOCALIZER" in about.image_type:
        return "localiser images"
    return "screenshots (secondary captures)" if about.sop_class == _SCREENSHOTS else ""


def _stacks(members: Sequence[_Member], left_out: Counter[str]) -> dict[str, list[_Member]]:
    """The slices of each case, by its id; a file of several frames is kept, so that it is refused by name."""
    series: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        series[member[1].series].append(member)
    stacks = {}
    for key, whole in series.items():
        parts = [part for person in _by_patient(whole) for part in _by_direction(person)]
        kept = [
            part
            for part in parts
            if len(part) >= _FEWEST or any(about.frames > 1 for _, about in part)
        ]
        left_out["single images, no volumes"] += sum(
            len(part) for part in parts if part not in kept
        )
        number = whole[0][1].number
        id = f"series-{'x' if number is None or number < 0 else min(number, 10**9)}-{_hash(key)}"
        for place, part in enumerate(kept):
            stacks[id if len(kept) == 1 else f"{id}-{place + 1}"] = part
    left_out += Counter()  # drops what counts zero
    return stacks


def _by_patient(members: Sequence[_Member]) -> list[list[_Member]]:
    """The slices of each patient: a careless anonymiser gives several of them one UID."""
    people: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        people[member[1].patient].append(member)
    return list(people.values())


def _by_direction(members: Sequence[_Member]) -> list[list[_Member]]:
    parts: list[list[_Member]] = []
    for member in members:
        mine = member[1].directions
        for part in parts:
            other = part[0][1].directions
            if len(mine) == len(other) and np.allclose(mine, other, rtol=0, atol=_SAME_DIRECTION):
                part.append(member)
                break
        else:
            parts.append([member])
    return parts


def _subjects(stacks: dict[str, list[_Member]]) -> list[str]:
    """One name per patient: a hash of one series' UID, since that of a number of seven digits keeps no secret."""
    first = [stack[0][1] for stack in stacks.values()]
    persons = [about.patient or about.study or about.series for about in first]
    least: dict[str, str] = {}
    for person, about in zip(persons, first, strict=True):
        least[person] = min(least.get(person, about.series), about.series)
    return [f"patient-{_hash(least[person])}" for person in persons]


def _remarks(
    stacks: dict[str, list[_Member]], subjects: Sequence[str], modalities: set[str]
) -> list[str]:
    notes = []
    if len(set(subjects)) == 1 and len(stacks) > 1:
        notes.append(f"all {len(stacks)} series have one PatientID and count as one subject")
    burned = sum(any(about.burned_in for _, about in stack) for stack in stacks.values())
    if burned:
        notes.append(f"series with text burned into their pixels, which may name people: {burned}")
    parted = sum(id.count("-") > 2 for id in stacks)
    if parted:
        notes.append(
            f"{parted} cases come from series whose slices have several orientations or patients"
        )
    if len(modalities) > 1:
        listed = ", ".join(sorted(printable(each[:16]) or "unknown" for each in modalities))
        notes.append(
            f"series of several modalities ({listed}) are read together; best keep each in its own folder"
        )
    return notes


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
