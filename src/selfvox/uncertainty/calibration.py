"""Calibration of a trained segmenter: what its passes say of true Dice and true volumes.

It is fitted on labelled scans that the network was not trained on. A line maps the agreement of the
passes to Dice; the errors of volumes, relative to the spread of the passes, give their interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from selfvox.uncertainty.calibration_file import AnyCalibration, Rate, made_with, passes_mismatch
from selfvox.uncertainty.conformal import conformal_quantile, largest_of_subjects
from selfvox.uncertainty.ensemble import PassSettings

MIN_SUBJECTS = 3  # fewer leave two subjects for a line, and promise two chances in three
# cases that a class's slope is worth before it has any: it starts from the slope of all classes,
# and that from 1
PRIOR_CASES = 5
# added to the spread of the passes, since passes that agree are not free of error; constants, so
# that the promise of the quantile holds
RELATIVE_FLOOR = 0.05  # of the volume
ABSOLUTE_FLOOR = {"ml": 0.001, "px": 1.0}

Unit = Literal["ml", "px"]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Measure:
    """A class or region of one labelled scan: what the passes say of it, and the truth."""

    case: str
    subject: str
    agreement: float
    volume: float  # of the written mask
    spread: float  # standard deviation of the volumes of the passes
    dice: float  # with the truth
    true_volume: float


class Line(NamedTuple):
    """Dice as a line of the agreement of the passes."""

    intercept: float
    slope: float

    def __call__(self, agreement: float) -> float:
        """Predicted Dice."""
        return min(1.0, max(0.0, self.intercept + self.slope * agreement))


@dataclass(frozen=True)
class PartCalibration:
    """The calibration of one class or region."""

    intercept: Finite  # of Dice by agreement
    slope: Finite
    dice_margin: Positive  # half of the range of Dice
    volume_factor: Positive  # half of the interval of a volume, relative to its scale


class Estimate(NamedTuple):
    """What is known of a class or region of a scan without its truth."""

    dice: float
    dice_low: float
    dice_high: float
    volume_low: float
    volume_high: float


@dataclass(frozen=True, kw_only=True)
class Calibration(AnyCalibration):
    """The calibration of a network, for passes like those it was made with."""

    vote: str
    overlap: Rate
    volumes_in: Unit
    classes: Mapping[str, PartCalibration]  # by class number
    regions: Mapping[str, PartCalibration]  # by name

    def estimate(self, part: Mapping[str, Any]) -> Estimate | None:
        """The estimates of a class or region of a review; None where it was not calibrated."""
        if "spread" not in part:
            return None  # a record of an earlier version
        fitted = self.regions.get(part["region"]) if "region" in part else None
        if "class" in part:
            fitted = self.classes.get(str(part["class"]))
        if fitted is None:
            return None
        dice = Line(fitted.intercept, fitted.slope)(part["agreement"])
        volume = part["volume"]
        half = fitted.volume_factor * volume_scale(volume, part["spread"], self.volumes_in)
        return Estimate(
            dice=dice,
            dice_low=max(0.0, dice - fitted.dice_margin),
            dice_high=min(1.0, dice + fitted.dice_margin),
            volume_low=max(0.0, volume - half),
            volume_high=volume + half,
        )

    def mismatch(self, settings: PassSettings, sha256: str, overlap: float) -> str | None:
        """Why it says nothing about such predictions of a network; None where it does."""
        reason = passes_mismatch(self, settings, sha256)
        if reason is None and (settings.vote, overlap) != (self.vote, self.overlap):
            return (
                f"the run is calibrated for a {self.vote} vote and an overlap of {self.overlap:g}"
            )
        return reason


def volume_scale(volume: float, spread: float, unit: Unit) -> float:
    """What errors of a volume are compared with: above all the spread of the passes."""
    return spread + RELATIVE_FLOOR * volume + ABSOLUTE_FLOOR[unit]


def fit_lines(parts: Mapping[str, Sequence[Measure]]) -> dict[str, Line]:
    """Dice by agreement, for each class or region, by least squares with few cases in mind.

    The mean Dice of a class is always met. Its slope counts as much as its cases do; the slope of
    all classes together, within each, counts as `PRIOR_CASES` more, and so does a slope of 1 for
    that one.
    """
    means = {
        name: (
            statistics.fmean(measure.agreement for measure in measures),
            statistics.fmean(measure.dice for measure in measures),
        )
        for name, measures in parts.items()
    }
    squares = {
        name: sum((measure.agreement - means[name][0]) ** 2 for measure in measures)
        for name, measures in parts.items()
    }
    products = {
        name: sum(
            (measure.agreement - means[name][0]) * (measure.dice - means[name][1])
            for measure in measures
        )
        for name, measures in parts.items()
    }
    prior = PRIOR_CASES * sum(squares.values()) / sum(map(len, parts.values()))
    pooled = 1.0
    if prior > 0:
        pooled = (sum(products.values()) + prior) / (sum(squares.values()) + prior)
    lines = {}
    for name, (agreement, dice) in means.items():
        slope = pooled
        if prior > 0:
            slope = (products[name] + prior * pooled) / (squares[name] + prior)
        slope = max(0.0, slope)  # more agreement never means less Dice
        lines[name] = Line(dice - slope * agreement, slope)
    return lines


def held_out_dice(parts: Mapping[str, Sequence[Measure]]) -> dict[str, list[float]]:
    """Predicted Dice of each measure, by lines fitted without its subject."""
    predicted = {name: [0.0] * len(measures) for name, measures in parts.items()}
    for subject in subjects_of(parts):
        others = {
            name: [measure for measure in measures if measure.subject != subject]
            for name, measures in parts.items()
        }
        lines = fit_lines(others)
        for name, measures in parts.items():
            for number, measure in enumerate(measures):
                if measure.subject == subject:
                    predicted[name][number] = lines[name](measure.agreement)
    return predicted


def fit_parts(parts: Mapping[str, Sequence[Measure]], unit: Unit) -> dict[str, PartCalibration]:
    """The calibration of each class or region.

    Errors of Dice are those of lines fitted without the subject. Of a subject with several scans,
    the largest error counts, so that an interval holds for all of them.

    Args:
        parts: measures of the same scans, by class or region; at least `MIN_SUBJECTS` subjects.
        unit: of the volumes.
    """
    lines = fit_lines(parts)
    predicted = held_out_dice(parts)
    fitted = {}
    for name, measures in parts.items():
        subjects = [measure.subject for measure in measures]
        dice_errors = [
            abs(measure.dice - dice)
            for measure, dice in zip(measures, predicted[name], strict=True)
        ]
        volume_errors = [
            abs(measure.true_volume - measure.volume)
            / volume_scale(measure.volume, measure.spread, unit)
            for measure in measures
        ]
        fitted[name] = PartCalibration(
            intercept=lines[name].intercept,
            slope=lines[name].slope,
            dice_margin=conformal_quantile(largest_of_subjects(subjects, dice_errors)),
            volume_factor=conformal_quantile(largest_of_subjects(subjects, volume_errors)),
        )
    return fitted


def subjects_of(parts: Mapping[str, Sequence[Measure]]) -> list[str]:
    """The subjects of the measures, each once."""
    return list(dict.fromkeys(measure.subject for part in parts.values() for measure in part))


def make_calibration(
    settings: PassSettings,
    sha256: str,
    overlap: float,
    scans: str,
    of_classes: Mapping[str, Sequence[Measure]],
    of_regions: Mapping[str, Sequence[Measure]],
    unit: Unit,
    networks: int = 1,
) -> Calibration:
    """Fit the calibration of a network.

    Args:
        settings: of the passes that measured.
        sha256: of the network's weights; of several that measured, those of the first.
        overlap: of neighbouring windows.
        scans: which scans were measured, in words.
        of_classes: measures by class number, as text; none of a network trained on regions.
        of_regions: measures by region.
        unit: of the volumes.
        networks: that measured, each its own scans.
    """
    measured = of_classes or of_regions
    cases = len(next(iter(measured.values())))
    subjects = len(subjects_of(measured))
    return Calibration(
        **made_with(settings, sha256, scans, cases, subjects, networks),
        vote=settings.vote,
        overlap=overlap,
        volumes_in=unit,
        classes=fit_parts(of_classes, unit) if of_classes else {},
        regions=fit_parts(of_regions, unit) if of_regions else {},
    )
