"""Checks of the values of scans: mixed modalities, CT without Hounsfield units, other scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from selfvox.data.checks.findings import Finding
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.naming import printable

_AIR_HU = -500.0  # only CT has values so far below zero
# MR has no fixed unit: the 99th percentiles of real sets of one modality are within 9 times of
# their median; those of scans that were exported with another scale are 300 times off
_FACTOR = 20.0
_LEAST_SCANS = 3  # of which a median says what is usual


def check_values(facts: Sequence[ScanFacts], channel_names: Sequence[str]) -> list[Finding]:
    """Findings on the values."""
    findings = _check_modalities(facts)
    for index, name in enumerate(channel_names):
        findings += _check_hounsfield(facts, index, name)
        findings += _check_scale(facts, index, name)
    return findings


def _check_modalities(facts: Sequence[ScanFacts]) -> list[Finding]:
    counts = Counter(scan.profile.modality for scan in facts if scan.profile.modality)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    others = tuple(scan.id for scan in facts if scan.profile.modality not in (None, usual))
    listed = ", ".join(f"{count} {printable(name)}" for name, count in counts.most_common())
    text = f"scans of several modalities ({listed}); keep each in a folder of its own"
    return [Finding("error", "modality", text, others)]


def _check_hounsfield(facts: Sequence[ScanFacts], index: int, name: str) -> list[Finding]:
    """Scans without a negative value among CT scans."""
    lowest = {scan.id: scan.profile.channels[index].before[0] for scan in facts}
    has_air = [scan for scan, value in lowest.items() if value < _AIR_HU]
    without = tuple(scan for scan, value in lowest.items() if value >= 0)
    if not has_air or not without:
        return []
    text = (
        f"{printable(name)}: no value below 0, where {len(has_air)} scans have Hounsfield units "
        "with air; another modality, shifted or windowed values? Export them in Hounsfield units"
    )
    return [Finding("error", "values", text, without)]


def _check_scale(facts: Sequence[ScanFacts], index: int, name: str) -> list[Finding]:
    """Scans whose own values are many times those of the others, which normalised ones hide."""
    # nearly the highest: a single voxel may be anything, and the median of a head is often air
    highest = {scan.id: scan.profile.channels[index].before[3] for scan in facts}
    positive = {scan: value for scan, value in highest.items() if value > 0}
    if len(positive) < _LEAST_SCANS:
        return []
    usual = float(np.median(list(positive.values())))
    others = {
        scan: value
        for scan, value in positive.items()
        if not usual / _FACTOR <= value <= usual * _FACTOR
    }
    if not others:
        return []
    first, value = next(iter(others.items()))
    text = (
        f"{printable(name)}: another scale of values: the 99th percentile of {printable(first)} is "
        f"{value:.4g}, where the median of all scans is {usual:.4g}; another unit, or a factor of "
        "an export? Convert them to one unit, or check that each scan is normalised by itself"
    )
    return [Finding("note", "values", text, tuple(others))]
