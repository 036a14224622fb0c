"""Which scans to label next: those that differ most from the chosen ones, and are trusted least."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def farthest_first(
    apart: np.ndarray,
    known: Sequence[int],
    candidates: Sequence[int],
    weights: np.ndarray,
    count: int,
) -> list[int]:
    """Greedy cover (k-center: Gonzalez 1985; for labels Sener and Savarese 2018), weighted.

    Each time the candidate is taken for which the distance to the nearest scan that is known or
    taken, times its weight, is largest. If nothing is known, the first is the most typical one
    with the largest weight: that of the smallest sum of distances, over its weight.

    Args:
        apart: distances (scan, scan).
        known: numbers of scans that are labelled.
        candidates: numbers of scans to choose from.
        weights: of all scans, positive.
        count: how many to choose, at most.

    Returns:
        Numbers of scans, in the order in which they were chosen.
    """
    remaining = list(candidates)
    chosen: list[int] = []
    while remaining and len(chosen) < count:
        reference = [*known, *chosen]
        if reference:
            gains = apart[np.ix_(remaining, reference)].min(1) * weights[remaining]
        else:
            gains = weights[remaining] / np.maximum(apart[remaining].sum(1), 1e-12)
        chosen.append(remaining.pop(int(np.argmax(gains))))
    return chosen
