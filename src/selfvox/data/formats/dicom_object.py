"""What DICOM objects that refer to slices have in common: their source, series and voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid

from selfvox.data.formats.dicom_tags import quiet
from selfvox.data.formats.image import Image
from selfvox.data.formats.volume import LPS_TO_RAS
from selfvox.errors import DataError, UsageError
from selfvox.runs.atomic_files import atomic_write

_SAME_PLACE_MM = 1e-2  # headers round positions
# attributes of patient and study that may be empty but not absent (type 2); files that were
# de-identified often lack them
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
SERIES_NUMBER = 900  # far from those of scanners


def check_installed() -> None:
    """Refuse to go on without highdicom.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import highdicom  # noqa: F401 - an optional dependency, which takes seconds
    except ImportError:
        raise UsageError(
            "dicom: needs highdicom; install it with `pip install selfvox[dicom-seg]`"
        ) from None


def series_of_selfvox(number: int) -> dict[str, Any]:
    """The arguments of highdicom's objects that name a new series, and who made it."""
    return {
        "series_instance_uid": uid.generate_uid(),
        "series_number": number,
        "sop_instance_uid": uid.generate_uid(),
        "instance_number": 1,
        "manufacturer": "selfvox",
        "manufacturer_model_name": "selfvox",
        "software_versions": version("selfvox"),
        "device_serial_number": "0",
    }


def write_object(path: Path, like: Image, make: Callable[[], pydicom.Dataset]) -> None:
    """Make an object that refers to the slices of a scan, and write it.

    Raises:
        DataError: it cannot be made of the headers of the scan.
    """
    try:
        with quiet():
            made = make()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # without the text of the error, which may quote a name or a date of birth
        raise DataError(
            f"{like.name}: its DICOM headers cannot be referred to ({type(error).__name__}); "
            "predict it without --dicom"
        ) from None
    with atomic_write(path) as temporary:
        made.save_as(temporary)


def pixel_measures(like: Image) -> Any:
    """Distances of the voxels; headers may lack that of the slices, or have another one."""
    import highdicom as hd  # only here: it is optional, and takes seconds

    x, y, z = (round(float(np.linalg.norm(like.affine[:3, axis])), 6) for axis in range(3))
    return hd.PixelMeasuresSequence(
        pixel_spacing=[y, x], slice_thickness=z, spacing_between_slices=z
    )


def slices_in_order(sources: Sequence[Path], like: Image) -> list[pydicom.Dataset]:
    """The headers of the slices, in the order of the planes of the scan.

    Raises:
        DataError: a plane has no slice of its own.
    """
    with quiet():
        # as scans are read: also files without the preamble of DICOM
        headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in sources]
    for header in headers:
        for name in _MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
        if "SliceThickness" not in header:
            header.SliceThickness = round(float(np.linalg.norm(like.affine[:3, 2])), 6)
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    planes = np.arange(like.shape[2])
    # of the first voxel of each plane, in DICOM's world
    to_lps = np.linalg.inv(LPS_TO_RAS) @ like.affine
    expected = to_lps[:3, 3] + planes[:, None] * to_lps[:3, 2]
    apart = np.linalg.norm(expected[:, None] - positions[None], axis=2)
    nearest = apart.argmin(1)
    # a stack of rounded positions is fitted through all of them
    gap_mm = float(np.linalg.norm(to_lps[:3, 2]))
    if (apart[planes, nearest] > max(_SAME_PLACE_MM, 0.05 * gap_mm)).any():
        raise DataError(
            f"{like.name}: slices of it were interpolated, and have no DICOM file to refer to; "
            "predict it without --dicom"
        )
    return [headers[number] for number in nearest]
