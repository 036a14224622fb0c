"""Fields of a file's header that may name a person: their names, never their contents."""

from __future__ import annotations

import contextlib
import re
import zlib
from pathlib import Path

import nibabel as nib
import pydicom
from PIL import ExifTags
from PIL import Image as Pillow

from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.runs.safe_open import open_regular

_PERSONAL_TAGS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "ReferringPhysicianName",
    "InstitutionName",
    "StudyDate",
)
_HEADER_BYTES = 2**16
_NIFTI1_BYTES = 348
_NIFTI2_BYTES = 540
_NIFTI_TEXTS = ("db_name", "aux_file", "descrip", "intent_name")
_DICOM_EXTENSION = 2  # of NIfTI: a whole DICOM header
# keys of NRRD, MetaImage and pictures
_PERSONAL_KEY = re.compile(
    r"patient|person|name|birth|dob|mrn|author|artist|owner|physician|operator|institution|"
    r"accession|address|date|gps|description|comment|copyright",
    re.IGNORECASE,
)
# a date, or a name as DICOM writes it
_PERSONAL_TEXT = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-./]?(?:0[1-9]|1[0-2])[-./]?(?:0[1-9]|[12]\d|3[01])(?!\d)|"
    r"(?<!\d)(?:0[1-9]|[12]\d|3[01])[-./](?:0[1-9]|1[0-2])[-./](?:19|20)\d\d(?!\d)|"
    r"\w\^\w|\bpatient\b|\bname\b|\bborn\b",
    re.IGNORECASE,
)
_MEANS_NOTHING = {"", "anonymous", "anonymized", "anonymised", "none", "unknown", "null"}


def personal_fields(path: Path, is_dicom: bool = False) -> tuple[str, ...]:
    """The fields of a header that are filled and may name a person; empty if it is unreadable.

    Dates count too, since together with a place they identify people.

    Args:
        path: of a scan.
        is_dicom: the format has no ending.
    """
    ending = suffix(path)
    # a hostile file may make any parser raise anything; reading the scan reports it
    with contextlib.suppress(Exception):
        if is_dicom:
            return _dicom_fields(path)
        if ending in (".nii", ".nii.gz"):
            return _nifti_fields(path, ending == ".nii.gz")
        if ending in SUFFIXES_2D:
            return _picture_fields(path)
        return _itk_fields(path)
    return ()


def is_personal_name(name: str) -> bool:
    """Whether the name of a file or folder has a date, or a person's name as DICOM writes it."""
    return _PERSONAL_TEXT.search(name) is not None


def _dicom_fields(path: Path) -> tuple[str, ...]:
    with open_regular(path) as file:
        header = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=list(_PERSONAL_TAGS), force=True
        )
    return tuple(tag for tag in _PERSONAL_TAGS if _says_something(str(header.get(tag, ""))))


def _nifti_fields(path: Path, packed: bool) -> tuple[str, ...]:
    with open_regular(path) as file:
        raw = file.read(_HEADER_BYTES)
    if packed:
        raw = zlib.decompressobj(31).decompress(raw, _HEADER_BYTES)
    is_second = raw[:4] in (_NIFTI2_BYTES.to_bytes(4, "little"), _NIFTI2_BYTES.to_bytes(4, "big"))
    size = _NIFTI2_BYTES if is_second else _NIFTI1_BYTES
    header = (nib.Nifti2Header if is_second else nib.Nifti1Header)(raw[:size], check=False)
    fields = []
    for field in _NIFTI_TEXTS:
        if field not in header.keys():  # noqa: SIM118  # nibabel's `in` looks at values
            continue
        text = bytes(header[field].tobytes()).rstrip(b"\0").decode("latin-1").strip()
        # programs write their own names and echo times into descrip and intent_name
        is_free = field in ("db_name", "aux_file")
        if _says_something(text) and (is_free or _PERSONAL_TEXT.search(text)):
            fields.append(field)
    extension = raw[size : size + 12]
    if len(extension) == 12 and extension[0] == 1:
        code = int.from_bytes(extension[8:12], "little" if header.endianness == "<" else "big")
        if code == _DICOM_EXTENSION:
            fields.append("DICOM extension")
    return tuple(fields)


def _itk_fields(path: Path) -> tuple[str, ...]:
    import SimpleITK  # only here: few data sets have such files

    reader = SimpleITK.ImageFileReader()
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    keys = [key for key in reader.GetMetaDataKeys() if not key.startswith(("NRRD_", "ITK_"))]
    return tuple(
        key
        for key in keys
        if _says_something(reader.GetMetaData(key))
        and (_PERSONAL_KEY.search(key) or _PERSONAL_TEXT.search(reader.GetMetaData(key)))
    )


def _picture_fields(path: Path) -> tuple[str, ...]:
    with open_regular(path) as file:
        picture = Pillow.open(file)
        texts: dict[str, object] = {str(key): value for key, value in picture.info.items()}
        tags: dict[str, object] = {
            ExifTags.TAGS.get(tag, str(tag)): value for tag, value in picture.getexif().items()
        }
    if "GPSInfo" in tags:
        tags["GPSInfo"] = "a place"
    return tuple(
        key
        for key, value in {**texts, **tags}.items()
        if isinstance(value, str) and _PERSONAL_KEY.search(key) and _says_something(value)
    )


def _says_something(text: str) -> bool:
    return text.strip().lower() not in _MEANS_NOTHING
