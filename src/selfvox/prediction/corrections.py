"""Corrected predictions: which there are, and whether each is a label of its scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.formats.image import Image, read_label, suffix
from selfvox.data.naming import printable, stem
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.ops.metrics import dice_per_class
from selfvox.prediction.case_ledger import CaseRecord
from selfvox.prediction.review_marks import Mark
from selfvox.runs.atomic_files import sha256

CORRECTED = "corrected"
PASSED = "passed"


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A label that a person answers for."""

    origin: str  # CORRECTED or PASSED
    image: Image  # the scan, for its grid
    label: np.ndarray  # (*space) class numbers
    # of the prediction to this label, mean of the classes in either; None where the prediction was
    # overwritten
    dice: float | None
    changed_voxels: int | None


@dataclass(frozen=True)
class CorrectionFinder:
    """Finds the label of a case that a person corrected or accepted.

    Args:
        predictions: label files of the predictions, by case id.
        records: what `predict` recorded of each case.
        exported: label files of a folder of corrections, by name without ending.
        marks: of a report.
        classes: name by class number.
        channels: of a scan.
        take_passed: whether predictions that are marked with pass count.
    """

    predictions: Mapping[str, Path]
    records: Mapping[str, CaseRecord]
    exported: Mapping[str, Path]
    marks: Mapping[str, Mark]
    classes: Mapping[int, str]
    channels: int
    take_passed: bool

    def find(self, name: str, case: Case) -> Correction | None:
        """The label of a case; None where nothing was corrected or accepted.

        Args:
            name: of the prediction.
            case: its scan.

        Raises:
            DataError: the label is on another grid, has other classes or equals the prediction; or
                the mark is of another prediction.
        """
        mark = self.marks.get(name)
        if mark is not None and mark.mark == "artefact":
            return None
        predicted = self.predictions[name]
        recorded = self.records[name].files.get(predicted.name)
        was_edited = sha256(predicted) != recorded
        exported = self._exported(name, mark)
        if exported is not None:
            return self._compare(case, exported, None if was_edited else predicted)
        if was_edited:
            return self._compare(case, predicted, None)
        if not (self.take_passed and mark is not None and mark.mark == "pass"):
            return None
        if mark.label_sha256 and mark.label_sha256 != recorded:
            raise DataError("was marked when it had another prediction; look at it again")
        image = self._read(case)
        label = read_label(predicted, image, self.classes)
        return Correction(origin=PASSED, image=image, label=label, dice=None, changed_voxels=0)

    def _exported(self, name: str, mark: Mark | None) -> Path | None:
        if mark is not None and mark.corrected:
            name = stem(Path(mark.corrected), suffix(Path(mark.corrected)))
        return self.exported.get(name)

    def _read(self, case: Case) -> Image:
        files = 1 if case.stacked else len(case.images)
        return read_case(case, self.channels if files == 1 else files)

    def _compare(self, case: Case, file: Path, predicted: Path | None) -> Correction:
        """The label in a file, compared with the prediction where that is still there."""
        image = self._read(case)
        label = read_label(file, image, self.classes)
        dice = changed = None
        if predicted is not None:
            before = read_label(predicted, image, self.classes)
            changed = int((before != label).sum())
            if not changed:
                raise DataError(
                    f"{printable(file.name)} equals the prediction; correct it, or mark it with "
                    "pass and use --passed"
                )
            values = np.array(sorted(self.classes))
            dice = _mean_dice(np.searchsorted(values, before), np.searchsorted(values, label))
        return Correction(
            origin=CORRECTED, image=image, label=label, dice=dice, changed_voxels=changed
        )


def _mean_dice(before: np.ndarray, after: np.ndarray) -> float:
    """Mean Dice of the classes that either has, without the background."""
    present = [value for value in np.union1d(before, after) if value > 0]
    dice = dice_per_class(before, after, int(max(before.max(), after.max())) + 1)
    return float(np.mean([dice[value - 1] for value in present]))
