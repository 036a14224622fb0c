"""Kinds of scans: groups in which every scan is like some other, by their profiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfvox.data.checks.findings import Finding
from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.naming import first_of
from selfvox.data.preparation.scan_range import ScanRange, coordinates, describe_differences

# scans are alike up to this distance, in the least differences of `scan_range`; by measurement
# (docs/results-log.md)
ALIKE = 4.0
_NEAREST = 2.0  # or up to so many times the median distance to the nearest scan, if that is more
_MOST_COMPARED = 2000  # scans; all others are compared with these
_LARGE = 0.1  # share of the scans from which a group counts as a kind, not as exceptions


def check_kinds(facts: Sequence[ScanFacts], channel_names: Sequence[str]) -> list[Finding]:
    """Scans unlike all others, and data sets that mix several kinds."""
    groups = group_alike(np.stack([coordinates(scan.profile) for scan in facts]))
    if len(groups) == 1:
        return []
    main = groups[0]
    if len(main) == 1:
        return [_nothing_in_common(facts, channel_names)]
    usual = ScanRange.of([facts[index].profile for index in main], channel_names)
    findings = []
    for group in groups[1:]:
        ids = tuple(facts[index].id for index in group)
        comparison = usual.compare(facts[group[0]].profile)
        reasons = describe_differences(comparison.differences)
        if len(group) >= max(2, _LARGE * len(facts)):
            text = (
                f"{len(group)} scans are of another kind than the other {len(facts) - len(group)}, "
                f"such as {first_of([facts[index].id for index in main][:1])}: {reasons}; "
                "train on one kind at a time"
            )
        else:
            text = f"unlike the other scans: {reasons}; look at it, and leave it out if it is wrong"
        findings.append(Finding("warning", "unlike", text, ids))
    return findings


def _nothing_in_common(facts: Sequence[ScanFacts], channel_names: Sequence[str]) -> Finding:
    """The finding where no two scans are alike, so that none of them is the exception."""
    first = ScanRange.of([facts[0].profile], channel_names)
    comparison = first.compare(facts[1].profile)
    reasons = describe_differences(comparison.differences)
    text = f"no two scans are alike; {facts[1].id} compared with {facts[0].id}: {reasons}"
    return Finding("note", "unlike", text, tuple(scan.id for scan in facts))


def group_alike(places: np.ndarray) -> list[list[int]]:
    """Indices of scans in groups, the largest group first.

    Two scans are in one group if a chain of scans leads from one to the other, each alike to the
    next.

    Args:
        places: (scan, number) coordinates.
    """
    step = -(-len(places) // _MOST_COMPARED)
    compared = list(range(0, len(places), step))
    chosen = places[compared]
    limit = _limit(chosen)
    group_of = _components(chosen, limit)
    groups: dict[int, list[int]] = {}
    for index, group in zip(compared, group_of, strict=True):
        groups.setdefault(group, []).append(index)
    for index in sorted(set(range(len(places))) - set(compared)):
        distances = _distances(chosen, places[index])
        nearest = int(distances.argmin())
        # -1 - index: a group of its own
        group = group_of[nearest] if distances[nearest] <= limit else -1 - index
        groups.setdefault(group, []).append(index)
    return sorted(map(sorted, groups.values()), key=lambda group: (-len(group), group))


def _distances(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(scan,) distances of one scan to others: the largest difference of their coordinates."""
    distances: np.ndarray = np.abs(places - place).max(1)
    return distances


def _limit(places: np.ndarray) -> float:
    """Up to which distance scans are alike: in a set of very different ones, further."""
    nearest = []
    for index in range(len(places)):
        distances = _distances(places, places[index])
        distances[index] = np.inf
        nearest.append(distances.min())
    typical = float(np.median(nearest)) if len(places) > 2 else 0.0
    return max(ALIKE, _NEAREST * typical)


def _components(places: np.ndarray, limit: float) -> list[int]:
    """For each scan the number of its group."""
    neighbours = [np.flatnonzero(_distances(places, place) <= limit) for place in places]
    group_of = [-1] * len(places)
    for first in range(len(places)):
        waiting = [first] if group_of[first] < 0 else []
        while waiting:
            index = waiting.pop()
            if group_of[index] < 0:
                group_of[index] = first
                waiting += neighbours[index].tolist()
    return group_of
