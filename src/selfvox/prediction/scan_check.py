"""Whether a scan is like those that a network was trained on: it is refused, noted or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.scan_range import (
    NOTED,
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
    is_far: bool = False  # so far that it is refused unless forced


@dataclass(frozen=True)
class ScanCheck:
    """Compares scans with those of the training, one after the other."""

    scans: Sequence[ScanRange | None]  # of the training of each network; None: not known
    force: bool  # also predict scans that are unlike those

    @classmethod
    def from_verb(cls, scans: Sequence[ScanRange | None], settings: Predict) -> ScanCheck:
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
    scans: Sequence[ScanRange | None],
    image: Image,
    prepared: PreparedScan,
    *,
    force: bool,
    modality: str | None = None,
) -> ScanComparison:
    """Compare a scan with those that each network was trained on; the largest distance counts.

    Args:
        scans: the range of the training scans of each network; None: not known, and not compared.
        image: the scan as it was read.
        prepared: the same by the recipe of the network.
        force: note a scan that is far outside of the range, instead of refusing it.
        modality: of the scan, where it is known.

    Raises:
        DataError: the scan is far outside.
    """
    ranges = [span for span in scans if span is not None]
    if not ranges:
        return ScanComparison(None)
    profile = measure_profile(image, prepared.data, prepared.geometry, modality)
    comparisons = [(span, span.compare(profile)) for span in ranges]
    furthest, comparison = max(comparisons, key=lambda pair: (pair[1].is_far, pair[1].distance))
    distance = comparison.distance
    if distance < NOTED:
        return ScanComparison(distance)
    text = f"{_theirs(furthest)}: {describe_differences(comparison.differences)}"
    if not comparison.is_far:
        return ScanComparison(distance, (f"differs from {text}",))
    if force:
        return ScanComparison(distance, (f"unlike {text}",), is_far=True)
    raise DataError(
        f"{image.name}: unlike {text}; leave it out, or predict it all the same with --force"
    )


def _theirs(scans: ScanRange) -> str:
    count = "the scan" if scans.count == 1 else f"the {scans.count} scans"
    return f"{count} that the run was trained on"
