"""What predictions are worth where the truth is known: trust against Dice, and calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfvox.errors import DataError
from selfvox.evaluation.calibration import measure_case, summary
from selfvox.evaluation.pairs import LabelPair
from selfvox.ops.regions import Regions
from selfvox.prediction.case_files import probability_file
from selfvox.reports.charts import Chart, Series, draw_chart
from selfvox.reports.run_facts import Finding
from selfvox.runs.progress import echo

_DIAGONAL = (0.0, 1.0)


@dataclass
class KnownTruth:
    """Collects what is measured of each case with a truth."""

    dice: dict[str, float] = field(default_factory=dict)  # mean over the classes, by case
    trust: dict[str, float] = field(default_factory=dict)
    predicted_dice: dict[str, float] = field(default_factory=dict)
    scores: list[dict[str, float]] = field(default_factory=list)  # of probabilities
    table: np.ndarray | None = None  # sums of `reliability`

    def add(
        self,
        case: str,
        dice: Mapping[str, float],
        trust: float | None,
        predicted_dice: float | None,
    ) -> None:
        """Add the Dice of the classes of a case."""
        defined = [value for value in dice.values() if not math.isnan(value)]
        if not defined:
            return
        self.dice[case] = statistics.fmean(defined)
        if trust is not None:
            self.trust[case] = trust
        if predicted_dice is not None:
            self.predicted_dice[case] = predicted_dice

    def add_probabilities(
        self, label: Path, truth: Path, values: Sequence[int], regions: Regions | None
    ) -> None:
        """Add the calibration of a case, where `predict` wrote probabilities.

        Args:
            label: the file of the prediction.
            truth: the file of the true label.
            values: the class numbers in the order of the probabilities.
            regions: what the probabilities are of, where not of the classes.
        """
        if not probability_file(label).exists():
            return
        try:
            scores, table = measure_case(LabelPair(label, truth), values, regions)
        except DataError as error:
            echo(f"calibration leaves out {error}")
            return
        self.scores.append(scores)
        self.table = table if self.table is None else self.table + table

    def findings(self) -> list[Finding]:
        """How trust and Dice are related, and how honest probabilities are."""
        findings = []
        cases = list(self.trust)
        if len(cases) > 2:
            columns = np.array([(self.trust[case], self.dice[case]) for case in cases])
            if (columns.std(0) > 0).all():
                r = float(np.corrcoef(columns.T)[0, 1])
                findings.append(
                    Finding(
                        f"Trust and true Dice of {len(cases)} cases have a correlation of {r:.2f}."
                    )
                )
        if self.scores:
            mean, reach = summary(self.scores)["ece"]
            interval = "" if math.isnan(reach) else f" ({mean - reach:.3f} to {mean + reach:.3f})"
            findings.append(
                Finding(
                    f"Probabilities are off by {mean:.3f}{interval} on average, around what is "
                    "labelled (expected calibration error)."
                )
            )
        return findings

    def charts(self) -> list[Chart]:
        """Trust and predicted Dice against Dice, and confidence against right voxels."""
        charts = []
        for identity, title, values in (
            ("trust", "Trust and Dice", self.trust),
            ("predicted", "Predicted and true Dice", self.predicted_dice),
        ):
            if len(values) > 1:
                cases = list(values)
                points = Series(
                    "cases",
                    [values[case] for case in cases],
                    [self.dice[case] for case in cases],
                    names=cases,
                )
                label = title.split(" and ")[0].lower()
                charts.append(draw_chart(identity, title, [points], label, "true Dice", (0, 1)))
        if self.table is not None:
            voxels, confidence, right = self.table[:, self.table[0] > 0]
            measured = Series("measured", confidence / voxels, right / voxels)
            honest = Series("honest", _DIAGONAL, _DIAGONAL, dashed=True)
            charts.append(
                draw_chart(
                    "reliability",
                    "Are probabilities honest?",
                    [measured, honest],
                    "confidence",
                    "share of right voxels",
                    (0, 1),
                )
            )
        return charts
