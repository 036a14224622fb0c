"""Where the files of each case are, in a folder of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.naming import stem
from selfvox.data.sources import Case

MAPS_FOLDER = "maps"
PROBABILITY_ENDING = "_probabilities"


class CaseFiles:
    """The files of each case.

    Args:
        path: of the folder.
        probabilities: whether each case has a file of probabilities too.
        map_endings: endings of the maps of each case.
        answers_only: whether a case has no files, but an answer in its record.
        label_ending: of the labels of volumes.
        dicom: whether DICOM series have a DICOM segmentation and parametric maps too.
    """

    def __init__(
        self,
        path: Path,
        probabilities: bool = False,
        map_endings: Sequence[str] = (),
        answers_only: bool = False,
        label_ending: str = ".nii.gz",
        dicom: bool = False,
    ):
        self.path = path
        self.probabilities = probabilities
        self.map_endings = tuple(map_endings)
        self._answers_only = answers_only
        self._label_ending = label_ending
        self._dicom = dicom

    def label_file(self, case: Case) -> Path:
        """The file of class numbers of a case."""
        return self.path / f"{case.id}{'.png' if _is_picture(case) else self._label_ending}"

    def probability_file(self, case: Case) -> Path:
        """The file of probabilities of a case."""
        return probability_file(self.label_file(case))

    def dicom_file(self, case: Case) -> Path | None:
        """The DICOM segmentation of a case; None where there is none."""
        return self.path / f"{case.id}.dcm" if self._dicom and case.stacked else None

    def map_files(self, case: Case) -> dict[str, Path]:
        """Files of the maps of a case by their ending, in a folder of their own."""
        suffix_of_maps = ".tif" if _is_picture(case) else ".nii.gz"
        folder = self.path / MAPS_FOLDER
        return {
            ending: folder / f"{case.id}_{ending}{suffix_of_maps}" for ending in self.map_endings
        }

    def dicom_map_files(self, case: Case) -> dict[str, Path]:
        """The DICOM parametric maps of a case by their ending; empty where there are none."""
        if self.dicom_file(case) is None:
            return {}
        folder = self.path / MAPS_FOLDER
        return {ending: folder / f"{case.id}_{ending}.dcm" for ending in self.map_endings}

    def map_picture(self, case: Case) -> Path:
        """The picture of the maps of a case."""
        return self.path / MAPS_FOLDER / f"{case.id}_maps.png"

    def of(self, case: Case) -> list[Path]:
        """All files of a case, its label first."""
        if self._answers_only:
            return []
        files = [self.label_file(case)]
        if self.probabilities:
            files.append(self.probability_file(case))
        segmentation = self.dicom_file(case)
        if segmentation is not None:
            files.append(segmentation)
        if self.map_endings:
            maps = (self.map_files(case), self.dicom_map_files(case))
            files += [*(path for paths in maps for path in paths.values()), self.map_picture(case)]
        return files


def probability_file(label: Path) -> Path:
    """The file of probabilities that belongs to a file of class numbers."""
    ending = suffix(label)
    probability_suffix = ".tif" if ending in SUFFIXES_2D else ".nii.gz"
    return label.with_name(f"{stem(label, ending)}{PROBABILITY_ENDING}{probability_suffix}")


def _is_picture(case: Case) -> bool:
    return suffix(case.images[0]) in SUFFIXES_2D
