"""The cases of a folder of predictions, each with its scan, its truth and what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from selfvox.data.formats.image import SUFFIXES_2D, Image, suffix
from selfvox.data.naming import natural_key
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.evaluation.pairs import find_truth
from selfvox.prediction.case_ledger import LEDGER, CaseRecord
from selfvox.prediction.class_table import read_class_table
from selfvox.prediction.output_folder import CLASS_TABLE, TARGET_TABLE
from selfvox.prediction.predicted_scans import find_predicted_scans, scans_by_case
from selfvox.prediction.read_predictions import label_files, read_reviews
from selfvox.runs.atomic_files import sha256
from selfvox.runs.ledger import read_records
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Report


@dataclasses.dataclass(frozen=True)
class PredictedCase:
    """A predicted case, before any of its voxels is read."""

    id: str
    label: Path | None  # None where whole scans were classified
    scan: Case | None  # None where it is not found
    channels: tuple[str, ...]  # their names
    truth: Path | None
    record: Mapping[str, Any]  # of the ledger
    review: Mapping[str, float]  # numbers of review.csv; empty after a single pass

    def read_scan(self) -> Image:
        """The scan.

        Raises:
            DataError: it is not found, or cannot be used.
        """
        if self.scan is None:
            raise DataError("the scan is not found; name the folder of the scans with --scans")
        channels = 1 if len(self.scan.images) > 1 else len(self.channels)
        return read_case(self.scan, channels)

    @property
    def scan_file(self) -> str | None:
        """The path of the scan from the folder of the scans; None for the slices of DICOM."""
        return None if self.scan is None or self.scan.stacked else self.scan.file

    @property
    def is_corrected(self) -> bool:
        """Whether somebody changed the label since it was predicted."""
        if self.label is None:
            return False
        digest = self.record.get("files", {}).get(self.label.name)
        return digest is not None and sha256(self.label) != digest


def list_cases(folder: Path, settings: Report) -> list[PredictedCase]:
    """The cases of a folder of predictions, in the order of `review.csv`, then of their names.

    Raises:
        DataError: there is none, or the folder is damaged.
    """
    if (folder / TARGET_TABLE).exists():
        raise DataError(
            f"{folder}: has numbers of whole scans, which a report does not show; open "
            f"{TARGET_TABLE} there"
        )
    if (folder / CLASS_TABLE).exists():
        labels: Mapping[str, Path | None] = dict.fromkeys(
            read_class_table(folder / CLASS_TABLE).predicted
        )
    else:
        labels = label_files(folder)
    # of several records, the last
    records = {record["id"]: record for record in read_records(folder / LEDGER, CaseRecord)}
    reviews = read_reviews(folder)
    dataset = find_predicted_scans(folder, settings.scans, settings.source)
    scans = scans_by_case(dataset, records) if dataset is not None else {}
    truths = _find_truths(settings)
    order = [*reviews, *sorted(labels.keys() - reviews.keys(), key=natural_key)]
    cases = []
    for case in order:
        if case not in labels:
            continue
        scan = scans.get(case)
        truth = truths.get(case) or (scan.label if scan is not None else None)
        cases.append(
            PredictedCase(
                id=case,
                label=labels[case],
                scan=scan,
                channels=dataset.channel_names if dataset is not None else (),
                truth=truth,
                record=records.get(case, {}),
                review=reviews.get(case, {}),
            )
        )
    missing = sum(case.scan is None for case in cases)
    if dataset is not None and missing:
        echo(f"{dataset.root}: has no scan of {missing} of {len(cases)} predictions")
    return cases


def is_picture(case: PredictedCase) -> bool:
    """Whether a case is a picture rather than a volume."""
    files = [case.label] if case.label is not None else list(case.scan.images if case.scan else ())
    # slices of DICOM have no ending
    return bool(files) and suffix(files[0]) in SUFFIXES_2D


def scans_folder(cases: Sequence[PredictedCase]) -> Path | None:
    """The folder from which the paths of the scans are shown; None where no scan is found."""
    for case in cases:
        if case.scan is None or case.scan_file is None:
            continue
        image = case.scan.images[0]
        folder = image.parents[len(PurePath(case.scan_file).parts) - 1]
        if folder / case.scan_file == image:
            return folder
    return None


def _find_truths(settings: Report) -> Mapping[str, Path]:
    if settings.truth is None:
        return {}
    return find_truth(settings.truth, settings.source).labels
