"""The settings of the verb `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import REGIONS, Source


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against the truth: Dice, distances in mm, volumes; kappa, accuracy, AUC.

    Returns:
        The rows of the table of scores.

    Example:
        selfvox evaluate predictions/ truth/ --out scores.csv
    """

    predictions: Annotated[Path, "folder of predictions"] = field(kw_only=False)
    truth: Annotated[Path, "folder or data set with true labels, or a table with grades"] = field(
        kw_only=False
    )
    out: Annotated[Path | None, "table of the scores to write, .csv"] = None
    regions: Annotated[str | None, REGIONS + "; default: those of the run or the data set"] = None
    source: Source = "auto"
