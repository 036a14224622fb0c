"""The papers' own scores, drawn next to a study's and never mixed with them.

`reference.csv` has one row per number, with the table or figure it comes from.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent / "reference.csv"


class StatedScore(NamedTuple):
    """A score that a paper states."""

    model: str
    fraction: float  # of the labels
    score: float


def stated_scores(dataset: str | None, region: str) -> list[StatedScore]:
    """What paper A states of a region of a data set, such as WT of `brats2018`."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        return [
            StatedScore(row["model"], float(row["fraction"]), float(row["dice"]))
            for row in csv.DictReader(lines)
            if row["dataset"] == dataset and row["region"] == region
        ]
