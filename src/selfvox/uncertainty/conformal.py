"""Split-conformal quantiles: how large an error is, at most, with a stated probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.9  # that intervals aim at


def promised_level(subjects: int) -> float:
    """The probability that an interval of so many subjects can promise.

    Up to 8 subjects promise less than 90 %: a ninth is below the largest of 8 errors with
    probability 8/9 only (Vovk et al. 2005; Lei et al. 2018).
    """
    return min(LEVEL, subjects / (subjects + 1))


def conformal_quantile(errors: Sequence[float]) -> float:
    """The error that one of a further subject does not exceed, with probability `promised_level`.

    It is the ceil((n + 1) 90 %)-th smallest of n errors (Lei et al. 2018, eq. 2.2), or the largest
    where there are too few. This holds for any distribution, as long as subjects are exchangeable.

    Args:
        errors: one for each subject.
    """
    # rounded first: 0.9 is no binary fraction
    rank = math.ceil(round((len(errors) + 1) * LEVEL, 9))
    return sorted(errors)[min(rank, len(errors)) - 1]


def largest_of_subjects(subjects: Sequence[str], errors: Sequence[float]) -> list[float]:
    """The largest error of each subject, so that an interval holds for all of its scans.

    Args:
        subjects: of each scan.
        errors: of each scan.
    """
    largest: dict[str, float] = {}
    for subject, error in zip(subjects, errors, strict=True):
        largest[subject] = max(error, largest.get(subject, error))
    return list(largest.values())
