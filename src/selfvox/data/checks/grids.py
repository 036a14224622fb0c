"""Checks of the grids of scans: spacing, unit, orientation, size, and how much of it is filled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from selfvox.data.checks.findings import Finding, Severity
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.preparation.fit_recipe import SPACING_TOLERANCE
from selfvox.data.preparation.recipe import is_near

# mm; beyond, the unit of the header is more likely wrong than the scan unusual
_SMALLEST_MM = 0.02
_LARGEST_MM = 20.0
_OTHER_SPACING = 3.0  # times the median: such a scan shows other things
_SMALLEST_EDGE = 8  # voxels of a scan
_LEAST_SCANS = 10  # before a scan that reaches a border is unlike the rest
_MOST_CUT = 0.1  # share of the scans that reach a border, so that it is unusual
_BORDERS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
_EMPTY = 0.01  # share of a scan that its foreground's box fills


def check_grids(facts: Sequence[ScanFacts]) -> list[Finding]:
    """Findings on the grids."""
    findings = [*_check_sizes(facts), *_check_filling(facts)]
    volumes = [scan for scan in facts if len(scan.geometry.shape) == 3]
    if volumes:
        findings += [*_check_units(volumes), *_check_spacings(volumes)]
        findings += [*_check_orientations(volumes), *_check_borders(volumes)]
    return findings


def _check_units(facts: Sequence[ScanFacts]) -> list[Finding]:
    def is_odd(scan: ScanFacts) -> bool:
        spacing = scan.profile.spacing_mm
        return min(spacing) < _SMALLEST_MM or max(spacing) > _LARGEST_MM

    return _finding(
        facts,
        is_odd,
        "error",
        "unit",
        lambda scan: (
            f"voxels of {_product(scan.profile.spacing_mm)} mm; is the unit of the header wrong? "
            "Save the spacing in mm"
        ),
    )


def _check_spacings(facts: Sequence[ScanFacts]) -> list[Finding]:
    median = np.median([scan.profile.spacing_mm for scan in facts], axis=0).tolist()
    usual = _product(median)

    def is_far(scan: ScanFacts) -> bool:
        return not is_near(scan.profile.spacing_mm, median, _OTHER_SPACING - 1)

    def differs(scan: ScanFacts) -> bool:
        return not is_far(scan) and not is_near(scan.profile.spacing_mm, median, SPACING_TOLERANCE)

    return [
        *_finding(
            facts,
            is_far,
            "warning",
            "spacing",
            lambda scan: (
                f"spacing {_product(scan.profile.spacing_mm)} mm, more than {_OTHER_SPACING:g} "
                f"times the median of {usual}, or less; blurred where it is resampled"
            ),
        ),
        *_finding(
            facts,
            differs,
            "note",
            "spacing",
            lambda scan: (
                "spacing differs by more than a fifth from the median, "
                f"{usual} mm; resampled to it, unless --spacing takes another"
            ),
        ),
    ]


def _check_orientations(facts: Sequence[ScanFacts]) -> list[Finding]:
    counts = Counter(scan.orientation for scan in facts).most_common()
    if len(counts) == 1:
        return []
    listed = ", ".join(f"{count} {name}" for name, count in counts)
    rare = tuple(scan.id for scan in facts if scan.orientation != counts[0][0])
    text = (
        f"axes in several orientations ({listed}); all are turned to RAS, which is right if the "
        "headers are: compare left and right in the pictures"
    )
    return [Finding("note", "orientation", text, rare)]


def _check_sizes(facts: Sequence[ScanFacts]) -> list[Finding]:
    return _finding(
        facts,
        lambda scan: min(scan.geometry.shape) < _SMALLEST_EDGE,
        "warning",
        "size",
        lambda scan: (
            f"only {_product(scan.geometry.shape)} voxels; is it a localiser, or a few slices?"
        ),
    )


def _check_filling(facts: Sequence[ScanFacts]) -> list[Finding]:
    def filling(scan: ScanFacts) -> float:
        return math.prod(scan.geometry.box_shape) / math.prod(scan.geometry.shape)

    return _finding(
        facts,
        lambda scan: filling(scan) < _EMPTY,
        "warning",
        "empty",
        lambda scan: f"almost empty: all but {filling(scan):.2%} of it is background; look at it",
    )


def _finding(
    facts: Sequence[ScanFacts],
    applies: Callable[[ScanFacts], bool],
    severity: Severity,
    check: str,
    text: Callable[[ScanFacts], str],
) -> list[Finding]:
    """One finding for all scans that something applies to, with the text for the first."""
    scans = [scan for scan in facts if applies(scan)]
    if not scans:
        return []
    return [Finding(severity, check, text(scans[0]), tuple(scan.id for scan in scans))]


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _check_borders(facts: Sequence[ScanFacts]) -> list[Finding]:
    """Scans that are filled up to a border of the image where nearly all others are not."""
    findings: list[Finding] = []
    if len(facts) < _LEAST_SCANS:
        return findings
    for axis, names in enumerate(_BORDERS):
        for name, is_cut in zip(names, (_begins_at_border, _ends_at_border), strict=True):
            cut = tuple(scan.id for scan in facts if is_cut(scan, axis))
            if cut and len(cut) <= _MOST_CUT * len(facts):
                text = (
                    f"filled up to the {name} border of the image, where {len(facts) - len(cut)} "
                    "others are not; is a part cut off?"
                )
                findings.append(Finding("note", "border", text, cut))
    return findings


def _begins_at_border(scan: ScanFacts, axis: int) -> bool:
    return scan.geometry.start[axis] == 0


def _ends_at_border(scan: ScanFacts, axis: int) -> bool:
    return scan.geometry.stop[axis] == scan.geometry.canonical_shape[axis]
