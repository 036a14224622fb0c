"""Estimates of the networks that predict together, each by its own calibration.

Every network is calibrated alone, so its own passes are what its calibration is asked about. The
mean of the answers is taken for that of all networks. This assumes that together they err at most
as much as one of them does on average, as ensembles do in practice: predicted Dice is then rather
too low, and intervals are rather too wide. No theorem promises the level for an ensemble.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfvox.uncertainty.calibration import Calibration, Estimate
from selfvox.uncertainty.calibration_file import describe_origin


@dataclass(frozen=True)
class EnsembleCalibration:
    """The calibrations of one or several networks, in the order in which they predict."""

    networks: tuple[Calibration, ...]

    @property
    def level(self) -> float:
        """What the ranges of Dice and the intervals of volumes promise: the lowest level of all."""
        return min(network.level for network in self.networks)

    @property
    def percent(self) -> str:
        """The level, such as `90 %`."""
        return f"{100 * self.level:.0f} %"

    @property
    def origin(self) -> str:
        """What the networks were calibrated on, in words."""
        return describe_origin(self.networks)

    def estimate(self, part: Mapping[str, Any]) -> Estimate | None:
        """The estimates of a class or region of a review; None where it was not calibrated.

        Of several networks, the means of theirs; the interval contains the volume of the written
        mask.
        """
        if len(self.networks) == 1:
            return self.networks[0].estimate(part)
        measures = part.get("networks", ())
        if len(measures) != len(self.networks):
            return None  # a record of an earlier version
        estimates = []
        for network, measure in zip(self.networks, measures, strict=True):
            estimate = network.estimate({**part, **measure})
            if estimate is None:
                return None
            estimates.append(estimate)
        mean = Estimate(*map(statistics.fmean, zip(*estimates, strict=True)))
        return mean._replace(
            volume_low=min(mean.volume_low, part["volume"]),
            volume_high=max(mean.volume_high, part["volume"]),
        )

    def predicted_dice(self, review: Mapping[str, Any]) -> float | None:
        """Predicted Dice of a scan: the mean over its classes, or over its regions."""
        estimates = [self.estimate(part) for part in review["classes"] or review["regions"]]
        known = [estimate.dice for estimate in estimates if estimate is not None]
        return statistics.fmean(known) if known else None
