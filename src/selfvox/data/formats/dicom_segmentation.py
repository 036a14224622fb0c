"""Labels as DICOM segmentation objects (SEG), which refer to the slices that were segmented.

The object belongs to the study of its source: it has the same patient, study and frame of
reference. It is written on request alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.sr.codedict import codes

from selfvox.data.formats.image import Image
from selfvox.data.formats.volume import LPS_TO_RAS
from selfvox.errors import DataError, UsageError
from selfvox.runs.atomic_files import atomic_write

_SAME_PLACE_MM = 1e-2  # headers round positions
# words of a class's name, and the code of what it is
_LESIONS = re.compile(r"lesion|abnormal", re.IGNORECASE)
_NEOPLASMS = re.compile(r"tumou?r|neoplasm|cancer|carcinoma|metasta|sarcoma|glioma", re.IGNORECASE)
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


def write_segmentation(
    path: Path,
    label: np.ndarray,
    like: Image,
    sources: Sequence[Path],
    classes: Mapping[int, str],
    is_labelmap: bool = False,
) -> None:
    """Write a label as a SEG, one segment for each class, present or not.

    Args:
        path: the file, .dcm.
        label: (x, y, z) class numbers.
        like: the scan, as it was read from its slices.
        sources: the files of the slices, in any order.
        classes: name by class number; the background, 0, is no segment.
        is_labelmap: one frame for each slice, with class numbers (Supplement 243 of 2024), which
            few viewers read yet; else binary, a frame for each slice and class.

    Raises:
        DataError: slices of the scan were interpolated, or cannot be referred to.
    """
    import highdicom as hd  # only here: it is optional, and takes seconds

    slices = slices_in_order(sources, like)
    values = [value for value in sorted(classes) if value != 0]
    # a labelmap has the class numbers; binary segments are numbered without gaps
    numbers = values if is_labelmap else range(1, len(values) + 1)
    kind = hd.seg.SegmentationTypeValues.LABELMAP
    # frames have rows first
    frames = label.transpose(2, 1, 0).astype(np.uint16)
    if not is_labelmap:
        kind = hd.seg.SegmentationTypeValues.BINARY
        frames = np.stack([frames == value for value in values], axis=-1)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="selfvox", version=version("selfvox"), family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        _describe(hd, number, classes[value], algorithm)
        for number, value in zip(numbers, values, strict=True)
    ]
    try:
        segmentation = hd.seg.Segmentation(
            source_images=slices,
            pixel_array=frames,
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid=uid.generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid.generate_uid(),
            instance_number=1,
            manufacturer="selfvox",
            manufacturer_model_name="selfvox",
            software_versions=version("selfvox"),
            device_serial_number="0",
            pixel_measures=pixel_measures(hd, like),
            # a class without a voxel would otherwise be an error
            omit_empty_frames=bool(frames.any()) and not is_labelmap,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{like.name}: its DICOM headers cannot be referred to ({' '.join(str(error).split())})"
            "; predict it without --dicom"
        ) from None
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary)


def pixel_measures(hd: Any, like: Image) -> Any:
    """Distances of the voxels; headers may lack that of the slices, or have another one."""
    x, y, z = (round(float(np.linalg.norm(like.affine[:3, axis])), 6) for axis in range(3))
    return hd.PixelMeasuresSequence(
        pixel_spacing=[y, x], slice_thickness=z, spacing_between_slices=z
    )


def slices_in_order(sources: Sequence[Path], like: Image) -> list[pydicom.Dataset]:
    """The headers of the slices, in the order of the planes of the scan.

    Raises:
        DataError: a plane has no slice of its own.
    """
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sources]
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


def _describe(hd: Any, number: int, name: str, algorithm: Any) -> Any:
    category, kind = _codes(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        # a short text: 64 characters
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=uid.generate_uid(),
        tracking_id=name[:64],
    )


def _codes(name: str) -> tuple[Any, Any]:
    """SNOMED CT codes of the category and of the kind of a class, by its name.

    A name that DICOM's dictionary has, such as `liver` or `caudate nucleus`, has its own code;
    others are anatomical structures, and the label has the name.
    """
    if _NEOPLASMS.search(name):
        return codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    if _LESIONS.search(name):
        return codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    keyword = "".join(word.capitalize() for word in re.split(r"[^A-Za-z0-9]+", name))
    for candidate in (keyword, f"{keyword}Structure"):
        if candidate and candidate in dir(codes.SCT):
            return codes.SCT.AnatomicalStructure, getattr(codes.SCT, candidate)
    return codes.SCT.AnatomicalStructure, codes.SCT.AnatomicalStructure
