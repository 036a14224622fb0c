"""DICOM: every series in a folder and its subfolders is a case; nothing of a patient is kept.

A case is called `series-NUMBER-HASH`, with a hash of the SeriesInstanceUID. Scans of one patient
are one subject, called after one of the patient's series. A series that has slices of several
orientations or patients becomes one case for each. Of several files with one position and the same
pixels, one counts. Localisers, screenshots, single images and objects without an image (SEG,
RTSTRUCT, SR, ...) are left out and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom import uid

from selfvox.data.formats.dicom_header import DicomHeader, is_dicom, read_header, says_dicom
from selfvox.data.formats.dicom_series import declared_spacing
from selfvox.data.formats.image import SUFFIXES_2D, SUFFIXES_3D, suffix
from selfvox.data.naming import count_of, printable
from selfvox.data.sources import Case, Dataset, case_key
from selfvox.data.sources._files import raise_unlistable, walk_visible
from selfvox.errors import DataError, UsageError, did_you_mean

_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")  # .ima: of Siemens
_ENDINGS = ("", *_DICOM_ENDINGS)
_NOT_DATA = {"dicomdir", "thumbs.db", "desktop.ini"}
# modalities (DICOM PS3.3, C.7.3.1.1.1) of what is derived from scans, or is no image
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
_SINGLE_IMAGES = "single images, no volumes"
_MIN_SLICES = 3  # of a volume
_SAME_DIRECTION = 1e-3  # of a cosine: a twentieth of a degree

_Member = tuple[Path, DicomHeader]


def looks_like(root: Path) -> bool:
    """A DICOM file, or a folder with some and no other kind of volume."""
    if root.is_file():
        return suffix(root) == "" and is_dicom(root)
    found_dicom = False
    for path in _files(root):
        if suffix(path) in SUFFIXES_3D:
            return False
        # no early end: a NIfTI file further on would mean another layout
        found_dicom = found_dicom or (_may_be_dicom(path) and is_dicom(path))
    return found_dicom


def read_dataset(root: Path) -> Dataset:
    """List the series.

    Raises:
        DataError: there is none.
    """
    candidates = (
        [root] if root.is_file() else list(filter(_may_be_dicom, _files(root, strict=True)))
    )
    files = [path for path in candidates if is_dicom(path)]
    if not files:
        raise DataError(f"{printable(root)}: no DICOM files found; looked in all subfolders")
    members, unreadable, left_out = _read_headers(files)
    # an empty or forbidden slice at the end of a series leaves no gap that shows
    foreign = set(candidates) - set(files)
    unreadable += sum(path.suffix.lower() in _DICOM_ENDINGS for path in foreign)
    stacks = _stacks(members, left_out)
    # without their names, which may be a patient's
    notes = []
    if unreadable:
        notes.append(f"{count_of(unreadable, 'file')} not readable as DICOM, left out")
    notes += _pictures_note(root)
    notes += [f"left out: {left_out[reason]} {reason}" for reason in sorted(left_out)]
    if not stacks:
        if root.is_file() and not left_out.keys() - {_SINGLE_IMAGES}:
            raise DataError(
                f"{printable(root)}: is one slice of a DICOM series; name the folder of the series"
            )
        details = "; ".join(notes) or "only single images"
        raise DataError(f"{printable(root)}: no series of slices found; {details}")
    subjects = _subjects(stacks)
    cases = [
        Case(
            id,
            subject,
            tuple(path for path, _ in stack),
            stacked=True,
            modality=stack[0][1].modality or None,
            spacing_mm=declared_spacing([header for _, header in stack]),
        )
        for (id, stack), subject in zip(stacks.items(), subjects, strict=True)
    ]
    cases.sort(key=case_key)
    modalities = {stack[0][1].modality for stack in stacks.values()}
    notes += _remarks(stacks, subjects, modalities)
    channel = _channel_name(modalities)
    return Dataset(root, "dicom", tuple(cases), (channel,), None, tuple(notes))


def read_choice(root: Path, choice: str) -> Dataset:
    """The same series; with the choice `allow-gap`, missing slices will be interpolated.

    Raises:
        UsageError: another choice.
        DataError: as `read_dataset`.
    """
    if choice != "allow-gap":
        raise UsageError(
            f"source: unknown choice '{printable(choice)}' of dicom"
            f"{did_you_mean(choice, ['allow-gap'])}"
        )
    dataset = read_dataset(root)
    return replace(dataset, cases=tuple(replace(case, allow_gap=True) for case in dataset.cases))


def _files(root: Path, strict: bool = False) -> Iterator[Path]:
    """The visible files at any depth; `strict` refuses folders that cannot be listed."""
    for folder, names in walk_visible(root, raise_unlistable if strict else None):
        yield from map(folder.joinpath, names)


def _may_be_dicom(path: Path) -> bool:
    """By its name: `.dcm`, no ending, or the last number of a UID; else by its magic word."""
    ending = path.suffix.lower()
    if path.name.lower() in _NOT_DATA:
        return False
    if ending in _ENDINGS or ending[1:].isdecimal():
        return True
    # pictures and volumes have their own formats
    return not suffix(path) and says_dicom(path)


def _pictures_note(root: Path) -> list[str]:
    """Pictures next to the series, which may be labels of their slices; without their names."""
    if root.is_file():
        return []
    pictures = [path for path in _files(root) if suffix(path) in SUFFIXES_2D]
    if not pictures:
        return []
    return [
        f"{count_of(len(pictures), 'picture')} next to the series left out; if they are labels of "
        "slices, convert each series and its labels to NIfTI volumes"
    ]


def _read_headers(files: Iterable[Path]) -> tuple[list[_Member], int, Counter[str]]:
    """Slices with their headers, the number of unreadable files, and that of others by reason."""
    members: list[_Member] = []
    unreadable = 0
    left_out = Counter[str]()
    for path in files:
        header = read_header(path)
        if header is None or not header.series:
            unreadable += 1
            continue
        reason = _why_no_slice(header)
        if reason:
            left_out[reason] += 1
        else:
            members.append((path, header))
    return members, unreadable, left_out


def _why_no_slice(header: DicomHeader) -> str:
    """Why a file is no slice of a scan; "" where it may be one."""
    if not header.has_pixels or header.modality in _NO_IMAGES:
        return "without an image of their own (such as SEG, RTSTRUCT, SR)"
    if "LOCALIZER" in header.image_type:
        return "localiser images"
    return "screenshots (secondary captures)" if header.sop_class == _SCREENSHOTS else ""


def _stacks(members: Sequence[_Member], left_out: Counter[str]) -> dict[str, list[_Member]]:
    """The slices of each case, by its id; single images are counted in `left_out`."""
    series: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        series[member[1].series].append(member)
    stacks = {}
    for key, slices in series.items():
        candidates = [
            stack
            for patient_slices in _by_patient(slices)
            for stack in _by_direction(patient_slices)
        ]
        volumes = [stack for stack in candidates if _is_volume(stack)]
        single_images = sum(len(stack) for stack in candidates if not _is_volume(stack))
        if single_images:
            left_out[_SINGLE_IMAGES] += single_images
        id = f"series-{_series_number(slices[0][1])}-{_hash(key)}"
        for place, stack in enumerate(volumes, start=1):
            stacks[id if len(volumes) == 1 else f"{id}-{place}"] = stack
    return stacks


def _is_volume(stack: Sequence[_Member]) -> bool:
    """A file of several frames counts, so that it is refused with its reason when it is read."""
    return len(stack) >= _MIN_SLICES or any(header.frames > 1 for _, header in stack)


def _series_number(header: DicomHeader) -> str:
    """SeriesNumber within the bounds of a plain name; `x` where there is none."""
    number = header.number
    return "x" if number is None or number < 0 else str(min(number, 10**9))


def _by_patient(members: Sequence[_Member]) -> list[list[_Member]]:
    """The slices of each patient: a careless anonymiser gives several of them one UID."""
    patients: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        patients[member[1].patient].append(member)
    return list(patients.values())


def _by_direction(members: Sequence[_Member]) -> list[list[_Member]]:
    stacks: list[list[_Member]] = []
    for member in members:
        for stack in stacks:
            if _same_direction(member[1].directions, stack[0][1].directions):
                stack.append(member)
                break
        else:
            stacks.append([member])
    return stacks


def _same_direction(first: Sequence[float], second: Sequence[float]) -> bool:
    if len(first) != len(second):  # one is absent
        return False
    return np.allclose(first, second, rtol=0, atol=_SAME_DIRECTION)


def _subjects(stacks: Mapping[str, list[_Member]]) -> list[str]:
    """One name per patient, a hash of the least UID of the patient's series.

    Not of the patient's number: a hash of seven digits is found by trying them all.
    """
    headers = [stack[0][1] for stack in stacks.values()]
    patients = [header.patient or header.study or header.series for header in headers]
    least: dict[str, str] = {}
    for patient, header in zip(patients, headers, strict=True):
        least[patient] = min(least.get(patient, header.series), header.series)
    return [f"patient-{_hash(least[patient])}" for patient in patients]


def _channel_name(modalities: set[str]) -> str:
    """The one modality, if it is a plain word."""
    if len(modalities) != 1:
        return "image"
    (modality,) = modalities
    return modality if modality.isalnum() else "image"


def _remarks(
    stacks: Mapping[str, list[_Member]], subjects: Sequence[str], modalities: set[str]
) -> list[str]:
    notes = []
    if len(set(subjects)) == 1 and len(stacks) > 1:
        notes.append(f"all {len(stacks)} series have one PatientID and count as one subject")
    burned = sum(any(header.burned_in for _, header in stack) for stack in stacks.values())
    if burned:
        notes.append(f"series with text burned into their pixels, which may name people: {burned}")
    separated = sum(id.count("-") > 2 for id in stacks)
    if separated:
        notes.append(
            f"{separated} cases come from series with slices of several orientations or patients"
        )
    if len(modalities) > 1:
        listed = ", ".join(sorted(printable(name[:16]) or "unknown" for name in modalities))
        notes.append(
            f"series of several modalities ({listed}) are read together; "
            "best keep each in its own folder"
        )
    return notes


def _hash(text: str) -> str:
    # 48 bits: two of a million series agree with a chance of 0.2 %
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
