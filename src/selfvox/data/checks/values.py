"""Checks of the values of scans: modalities that are mixed, and CT that has no Hounsfield units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfvox.data.checks.findings import Finding
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.naming import printable

_AIR_HU = -500.0  # only CT has values so far below zero


def check_values(facts: Sequence[ScanFacts], channel_names: Sequence[str]) -> list[Finding]:
    """Findings on the values."""
    findings = _check_modalities(facts)
    for index, name in enumerate(channel_names):
        findings += _check_hounsfield(facts, index, name)
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
