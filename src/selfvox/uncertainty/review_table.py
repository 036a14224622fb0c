"""Which predictions to review first: the table `review.csv`, with estimates of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.data.naming import natural_key, printable
from selfvox.runs.atomic_files import write_csv
from selfvox.uncertainty.ensemble_calibration import EnsembleCalibration
from selfvox.uncertainty.review import part_names, parts

# columns of a class or region, after its name, and the measure of the review that each shows
_MEASURES = {"spread low": "low", "spread high": "high", "agreement": "agreement"}
# the same, and the estimate of the calibration
_ESTIMATES = {
    "low": "volume_low",
    "high": "volume_high",
    "dice": "dice",
    "dice low": "dice_low",
    "dice high": "dice_high",
}
MOST_PRINTED = 5  # scans
# of each scan: how far it is from those of the training, and what was noted
COMPARISON_COLUMNS = ("distance", "notes")

Review = Mapping[str, Any]


def write_review(
    path: Path,
    reviews: Mapping[str, Review],
    classes: Mapping[int, str],
    calibration: EnsembleCalibration | None = None,
) -> None:
    """Write the reviews as a table, the worst first: by predicted Dice, or else by trust.

    Scans that are far from those of the training come before all others.

    Args:
        path: of the table.
        reviews: by case id.
        classes: name by class number.
        calibration: of the networks; adds predicted Dice and intervals of the volumes.
    """
    first = next(iter(reviews.values()))
    header = ["case", "trust", "entropy"]
    if calibration is not None:
        # first, since the rows are sorted by it
        header[1:1] = ["predicted dice", "level"]
    for name in part_names(first, classes):
        columns = list(_MEASURES) if calibration is None else [*_ESTIMATES, *_MEASURES]
        header += [f"{name} {first['volumes_in']}", *(f"{name} {column}" for column in columns)]
    rows = []
    for case in sort_reviews(reviews, calibration):
        review = reviews[case]
        row = [case, review["trust"], review["entropy"]]
        if calibration is not None:
            row[1:1] = [calibration.predicted_dice(review), calibration.level]
        for part in parts(review):
            row.append(part["volume"])
            if calibration is not None:
                estimate = calibration.estimate(part)
                row += [
                    None if estimate is None else getattr(estimate, name)
                    for name in _ESTIMATES.values()
                ]
            row += [part[measure] for measure in _MEASURES.values()]
        rows.append([*row, *comparison_cells(review)])
    write_csv(path, [*header, *COMPARISON_COLUMNS], rows)


def sort_reviews(
    reviews: Mapping[str, Review], calibration: EnsembleCalibration | None
) -> list[str]:
    """Case ids, those of scans unlike the training first, then of the lowest Dice or trust."""

    def key(case: str) -> tuple[bool, float, Any]:
        review = reviews[case]
        dice = None if calibration is None else calibration.predicted_dice(review)
        certainty = review["trust"] if dice is None else dice
        return not is_unlike(review), certainty, natural_key(case)

    return sorted(reviews, key=key)


def is_unlike(review: Review) -> bool:
    """Whether the scan was predicted by force: too far from the training for trust to mean much."""
    return bool(review.get("unlike"))


def comparison_cells(review: Review) -> list[Any]:
    """The cells of `COMPARISON_COLUMNS`."""
    return [review.get("distance"), "; ".join(review.get("notes", ()))]


def describe_estimates(
    reviews: Mapping[str, Review], classes: Mapping[int, str], calibration: EnsembleCalibration
) -> list[str]:
    """The worst scans in words: predicted Dice and volume of each class, with their ranges."""
    lines = [
        "predicted Dice and volumes; for each class, the intervals of the volume contain the truth "
        f"of {calibration.percent} of such scans, the ranges of Dice that of about as many "
        f"(calibrated on {calibration.origin})"
    ]
    cases = sort_reviews(reviews, calibration)
    for case in cases[:MOST_PRINTED]:
        review = reviews[case]
        texts = []
        for part, name in zip(parts(review), part_names(review, classes), strict=True):
            estimate = calibration.estimate(part)
            if estimate is None:
                continue
            unit = review["volumes_in"]
            texts.append(
                f"{printable(name)} Dice {estimate.dice:.2f} ({estimate.dice_low:.2f} to "
                f"{estimate.dice_high:.2f}), {part['volume']:.3g} {unit} "
                f"({estimate.volume_low:.3g} to {estimate.volume_high:.3g})"
            )
        lines.append(f"{printable(case)}: {'; '.join(texts)}")
    return lines
