"""Whether a scan is like those that a network was trained on: it is refused, noted or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.scan_range import (
    NOTED,
    REFUSED,
    ScanRange,
    describe_differences,
)
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict


class ScanComparison(NamedTuple):
    """How a scan compares with the training scans."""

    distance: float | None  # beyond their range; None if the run does not say what they were
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanCheck:
    """Compares scans with those of the training, one after the other."""

    scans: ScanRange | None  # of the training; None: not known
    force: bool  # also predict scans that are unlike those

    @classmethod
    def from_verb(cls, scans: ScanRange | None, settings: Predict) -> ScanCheck:
        """The check that `predict` makes with these settings.

        Scans of the run's own split are of its own data set: an unusual one is noted, not refused,
        so that scores are of all test scans.
        """
        is_own = settings.subset in ("train", "validation", "test")
        return cls(scans, settings.force or is_own)

    def compare(self, case: Case, image: Image, prepared: PreparedScan) -> ScanComparison:
        """Compare a scan, and print where it differs.

        Returns:
            The distance, and all notes of the scan.

        Raises:
            DataError: it is unlike them, and not forced.
        """
        comparison = compare_scan(
            self.scans, image, prepared, force=self.force, modality=case.modality
        )
        for note in comparison.notes:
            echo(f"{image.name}: {note}")
        return comparison._replace(notes=(*image.notes, *prepared.notes, *comparison.notes))


def compare_scan(
    scans: ScanRange | None,
    image: Image,
    prepared: PreparedScan,
    *,
    force: bool,
    modality: str | None = None,
) -> ScanComparison:
    """Compare a scan with those that a network was trained on.

    Args:
        scans: the range of the training scans; None: not known, and nothing is refused.
        image: the scan as it was read.
        prepared: the same by the recipe of the network.
        force: note a scan that is far outside of the range, instead of refusing it.
        modality: of the scan, where it is known.

    Raises:
        DataError: the scan is far outside.
    """
    if scans is None:
        return ScanComparison(None)
    profile = measure_profile(image, prepared.data, prepared.geometry, modality)
    distance, differences = scans.compare(profile)
    if distance < NOTED:
        return ScanComparison(distance)
    text = f"{_theirs(scans)}: {describe_differences(differences)}"
    if distance < REFUSED:
        return ScanComparison(distance, (f"differs from {text}",))
    if force:
        return ScanComparison(distance, (f"unlike {text}",))
    raise DataError(
        f"{image.name}: unlike {text}; leave it out, or predict it all the same with --force"
    )


def _theirs(scans: ScanRange) -> str:
    count = "the scan" if scans.count == 1 else f"the {scans.count} scans"
    return f"{count} that the run was trained on"
