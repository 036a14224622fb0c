"""Labels as DICOM segmentation objects (SEG), which refer to the slices that were segmented.

The object belongs to the study of its source: it has the same patient, study and frame of
reference. It is written on request alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom import uid
from pydicom.sr.codedict import codes

from selfvox.data.formats.dicom_object import (
    SERIES_NUMBER,
    pixel_measures,
    series_of_selfvox,
    slices_in_order,
    write_object,
)
from selfvox.data.formats.image import Image

# words of a class's name, and the code of what it is
_SIDES = re.compile(r"(?<![A-Za-z])(left|right)(?![A-Za-z])", re.IGNORECASE)
_LESIONS = re.compile(r"lesion|abnormal", re.IGNORECASE)
_NEOPLASMS = re.compile(r"tumou?r|neoplasm|cancer|carcinoma|metasta|sarcoma|glioma", re.IGNORECASE)


class Code(NamedTuple):
    """What a class is, in a terminology such as SNOMED CT (SCT)."""

    value: str
    scheme: str
    meaning: str


def write_segmentation(
    path: Path,
    label: np.ndarray,
    like: Image,
    sources: Sequence[Path],
    classes: Mapping[int, str],
    is_labelmap: bool = False,
    own_codes: Mapping[str, Code] | None = None,
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
        own_codes: of classes by name, in place of those that their names give.

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
        _describe(hd, number, classes[value], algorithm, (own_codes or {}).get(classes[value]))
        for number, value in zip(numbers, values, strict=True)
    ]
    write_object(
        path,
        like,
        lambda: hd.seg.Segmentation(
            source_images=slices,
            pixel_array=frames,
            segmentation_type=kind,
            segment_descriptions=descriptions,
            pixel_measures=pixel_measures(like),
            # a class without a voxel would otherwise be an error
            omit_empty_frames=bool(frames.any()) and not is_labelmap,
            **series_of_selfvox(SERIES_NUMBER),
        ),
    )


def _describe(hd: Any, number: int, name: str, algorithm: Any, own: Code | None) -> Any:
    category, kind, side = _codes(name)
    if own is not None:
        # it says the side, if there is one
        kind, side = hd.sr.CodedConcept(*own), None
    description = hd.seg.SegmentDescription(
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
    if side is not None:
        # highdicom has no argument for it
        (property_type,) = description.SegmentedPropertyTypeCodeSequence
        modifier = hd.sr.CodedConcept.from_code(side)
        property_type.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _codes(name: str) -> tuple[Any, Any, Any]:
    """SNOMED CT codes of the category, the kind and the side of a class, by its name.

    A name that DICOM's dictionary has, such as `liver` or `Left-Hippocampus`, has its own code;
    others are anatomical structures, and the label has the name. The side is None where the name
    has none.
    """
    sides = {word.lower() for word in _SIDES.findall(name)}
    side = None
    if len(sides) == 1:
        side = codes.SCT.Left if sides == {"left"} else codes.SCT.Right
        name = _SIDES.sub(" ", name)
    return *_category_and_kind(name), side


def _category_and_kind(name: str) -> tuple[Any, Any]:
    """As `_codes`, of a name without a side."""
    if _NEOPLASMS.search(name):
        return codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    if _LESIONS.search(name):
        return codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    keyword = "".join(word.capitalize() for word in re.split(r"[^A-Za-z0-9]+", name))
    for candidate in (keyword, f"{keyword}Structure"):
        if candidate and candidate in dir(codes.SCT):
            return codes.SCT.AnatomicalStructure, getattr(codes.SCT, candidate)
    return codes.SCT.AnatomicalStructure, codes.SCT.AnatomicalStructure
