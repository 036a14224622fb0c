"""Whether statements of certainty are true: predicted Dice and volume intervals, and the truth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from selfvox.evaluation.segmentation import Row
from selfvox.ops.regions import Regions
from selfvox.prediction.read_predictions import read_region_classes, read_reviews
from selfvox.runs.progress import echo

Review = Mapping[str, float]  # a row of `review.csv`, without its empty cells

MIN_SCANS = 3  # for a correlation and intervals
Z = 1.959964  # of a 95 % interval


def report_certainty(folder: Path, rows: Sequence[Row], regions: Regions) -> None:
    """Print how true the predicted Dice and the intervals of a folder's `review.csv` are.

    Scans are the units of all intervals, since the classes of one scan err together.

    Args:
        folder: of the predictions.
        rows: scores by case and class or region.
        regions: that were scored; those of other classes than predicted are left out.
    """
    reviews = read_reviews(folder)
    predicted = read_region_classes(folder) or {}
    other = {name for name, numbers in regions.items() if predicted.get(name) != numbers}
    scored = [row for row in rows if row["case"] in reviews and row["name"] not in other]
    _report_dice(reviews, scored)
    level = next((review["level"] for review in reviews.values() if "level" in review), None)
    if level is not None:
        _report_coverage(reviews, scored, ("low", "high"), f"{100 * level:.0f} % intervals")
    else:
        _report_coverage(
            reviews, scored, ("spread low", "spread high"), "spreads of the passes (no intervals)"
        )


def _report_dice(reviews: Mapping[str, Review], rows: Sequence[Row]) -> None:
    """Predicted against true Dice, by scan: means, bias and correlation."""
    is_calibrated = any("predicted dice" in review for review in reviews.values())
    column = "dice" if is_calibrated else "agreement"
    predicted: dict[str, list[float]] = {}
    true: dict[str, list[float]] = {}
    for row in rows:
        value = reviews[row["case"]].get(f"{row['name']} {column}")
        if value is not None:
            predicted.setdefault(row["case"], []).append(value)
            true.setdefault(row["case"], []).append(row["dice"])
    if len(predicted) < MIN_SCANS:
        return
    x = [statistics.fmean(values) for values in predicted.values()]
    y = [statistics.fmean(values) for values in true.values()]
    errors = [a - b for a, b in zip(x, y, strict=True)]
    bias = statistics.fmean(errors)
    # Student's t: with four scans its interval is 1.6 times as wide as that of a normal
    t = stats.t.ppf(0.975, len(errors) - 1)
    half = t * statistics.stdev(errors) / math.sqrt(len(errors))
    name = "predicted Dice" if is_calibrated else "agreement of the passes (not calibrated)"
    echo(
        f"{name} of {len(x)} scans: mean {statistics.fmean(x):.3f}, true Dice "
        f"{statistics.fmean(y):.3f}, bias {bias:+.3f} ({bias - half:+.3f} to {bias + half:+.3f}), "
        f"{_describe_correlation(x, y)}"
    )


def _describe_correlation(x: Sequence[float], y: Sequence[float]) -> str:
    if min(statistics.pstdev(x), statistics.pstdev(y)) == 0:
        return "no correlation, since one of them is the same for all"
    correlation = statistics.correlation(x, y)
    low, high = correlation_interval(correlation, len(x))
    return f"correlation {correlation:.2f} ({low:.2f} to {high:.2f})"


def _report_coverage(
    reviews: Mapping[str, Review], rows: Sequence[Row], ends: tuple[str, str], name: str
) -> None:
    """How many intervals contain the true volume."""
    holds: dict[str, list[bool]] = {}
    for row in rows:
        review = reviews[row["case"]]
        low, high = (review.get(f"{row['name']} {end}") for end in ends)
        if low is None or high is None:
            continue
        unit = "true_volume_ml" if "true_volume_ml" in row else "true_area_px"
        # the table has six digits
        slack = 1e-5 * high
        holds.setdefault(row["case"], []).append(low - slack <= row[unit] <= high + slack)
    if len(holds) < MIN_SCANS:
        return
    flags = [flag for of_scan in holds.values() for flag in of_scan]
    share = statistics.fmean(flags)
    low, high = share_interval(share, len(holds))
    echo(
        f"{name}: {sum(flags)} of {len(flags)} contain the true volume, {100 * share:.0f} % "
        f"({100 * low:.0f} to {100 * high:.0f} %)"
    )


def correlation_interval(correlation: float, scans: int) -> tuple[float, float]:
    """95 % interval of a correlation, by Fisher's transform; -1 to 1 for three scans."""
    if scans <= 3 or abs(correlation) >= 1:
        return (-1.0, 1.0) if scans <= 3 else (correlation, correlation)
    half = Z / math.sqrt(scans - 3)
    centre = math.atanh(correlation)
    return math.tanh(centre - half), math.tanh(centre + half)


def share_interval(share: float, scans: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score.

    The classes of a scan err together; with one independent fact per scan, the interval is rather
    too wide than too narrow.
    """
    weight = Z**2 / scans
    centre = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / scans + weight / (4 * scans))
    return max(0.0, centre - half), min(1.0, centre + half)
