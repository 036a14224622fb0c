"""Calibration of a trained classifier: a temperature for its probabilities, and sets of classes.

It is fitted on scans with a class that the network was not trained on. The temperature makes
probabilities as large as they are right (Guo et al. 2017). A set contains every class that is as
probable as the true ones of the calibration were (LAC; Sadinle, Lei and Wasserman 2019).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pydantic
from scipy import optimize

from selfvox.uncertainty.calibration_file import (
    Share,
    WholeScanCalibration,
    describe_origin,
    made_with,
)
from selfvox.uncertainty.conformal import conformal_quantile, largest_of_subjects
from selfvox.uncertainty.ensemble import PassSettings

# of 1 / temperature: at 0 all classes are equally probable
SHARPNESS = (0.02, 20.0)
LEAST = 1e-6  # a probability that is taken for 0: files have six digits


@dataclass(frozen=True)
class ClassMeasure:
    """A labelled scan: the probabilities that a network gives its classes, and the true one."""

    case: str
    subject: str
    probabilities: tuple[float, ...]  # mean over the passes
    truth: int  # index of the class


@dataclass(frozen=True, kw_only=True)
class ClassCalibration(WholeScanCalibration):
    """The calibration of a classifier, for passes like those it was made with."""

    temperature: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    largest_score: Share  # 1 - probability of a class, up to which it is in the set


class CalibratedClasses(NamedTuple):
    """What is known of the class of a scan without its truth."""

    probabilities: list[float]  # with the temperature
    set: list[int]  # indices of the classes that it may be


@dataclass(frozen=True)
class EnsembleClassCalibration:
    """The calibrations of one or several classifiers that predict together.

    The mean of their temperatures, and of their largest scores, is taken for that of all. The score
    of their mean probability is the mean of their scores, so this assumes that a mean of scores is
    at most as often large as one of them.

    Args:
        networks: a calibration for each.
        ordinal: whether the classes have an order; a set then has no gaps.
    """

    networks: tuple[ClassCalibration, ...]
    ordinal: bool

    @property
    def level(self) -> float:
        """What the sets promise: the lowest level of all."""
        return min(network.level for network in self.networks)

    @property
    def origin(self) -> str:
        """What the networks were calibrated on, in words."""
        return describe_origin(self.networks)

    def apply(self, probabilities: Sequence[float], predicted: int) -> CalibratedClasses:
        """Calibrated probabilities, and the set, of a scan.

        Args:
            probabilities: of each class, the mean over all networks.
            predicted: index of the class that they decide on.
        """
        temperature = statistics.fmean(network.temperature for network in self.networks)
        largest = statistics.fmean(network.largest_score for network in self.networks)
        return CalibratedClasses(
            with_temperature(np.array([probabilities]), temperature)[0].tolist(),
            class_set(probabilities, predicted, largest, self.ordinal),
        )


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (case, class) to the power of 1 / temperature, summing to one.

    That is the softmax of logits that were divided by the temperature, also where the probabilities
    are a mean of several.
    """
    logits = np.log(probabilities.clip(min=LEAST)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    scaled: np.ndarray = powers / powers.sum(1, keepdims=True)
    return scaled


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017).

    Few scans may all be right, and then no probability is large enough. So the truth counts as
    (n + 1) / (n + classes) of n scans, and each other class as 1 / (n + classes): Platt's targets
    (1999), for several classes.

    Args:
        probabilities: (case, class).
        truth: (case,), indices of the classes.
    """
    count, classes = probabilities.shape
    logits = np.log(probabilities.clip(min=LEAST))
    targets = np.full(probabilities.shape, 1 / (count + classes))
    targets[np.arange(count), truth] = (count + 1) / (count + classes)

    def cross_entropy(sharpness: float) -> float:
        scaled = sharpness * logits
        largest = scaled.max(1)
        sums = np.log(np.exp(scaled - largest[:, None]).sum(1)) + largest
        return float((sums - (targets * scaled).sum(1)).mean())

    # convex in the sharpness
    sharpness = optimize.minimize_scalar(cross_entropy, bounds=SHARPNESS, method="bounded").x
    return 1 / float(sharpness)


def class_set(
    probabilities: Sequence[float], predicted: int, largest_score: float, ordinal: bool
) -> list[int]:
    """The classes with a score, 1 - probability, up to the largest one; and the predicted class.

    Of ordered classes, those in between too.

    Args:
        probabilities: of each class, without a temperature.
        predicted: index of the predicted class.
        largest_score: of a class in the set.
        ordinal: whether the classes have an order.
    """
    inside = [
        number
        for number, probability in enumerate(probabilities)
        if 1 - probability <= largest_score + LEAST or number == predicted
    ]
    return list(range(inside[0], inside[-1] + 1)) if ordinal else inside


def make_class_calibration(
    settings: PassSettings,
    sha256: str,
    scans: str,
    measures: Sequence[ClassMeasure],
    networks: int = 1,
) -> ClassCalibration:
    """Fit the calibration of a classifier.

    The largest score is that of split conformal prediction, from the probabilities as they are: a
    temperature fitted on the same scans would break its promise. Of a subject with several scans,
    the largest score counts.

    Args:
        settings: of the passes that measured.
        sha256: of the network's weights; of several that measured, those of the first.
        scans: which scans were measured, in words.
        measures: of at least `MIN_SUBJECTS` subjects.
        networks: that measured, each its own scans.
    """
    probabilities = np.array([measure.probabilities for measure in measures])
    truth = np.array([measure.truth for measure in measures])
    scores = [max(0.0, 1 - measure.probabilities[measure.truth]) for measure in measures]
    of_subjects = largest_of_subjects([measure.subject for measure in measures], scores)
    return ClassCalibration(
        **made_with(settings, sha256, scans, len(measures), len(of_subjects), networks),
        temperature=fit_temperature(probabilities, truth),
        largest_score=conformal_quantile(of_subjects),
    )
