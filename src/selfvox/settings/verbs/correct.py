"""The settings of the verb `correct`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Source


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Take corrected predictions back as labels: a table of labelled scans to train on again.

    Corrected are labels that were changed in PREDICTIONS, and those of --corrections.

    Returns:
        The table, which `finetune` takes.

    Example:
        selfvox correct predictions/ --labelled labelled/ --out corrected/
    """

    predictions: Annotated[Path, "a folder of predictions, as `predict` wrote it"] = field(
        kw_only=False
    )
    out: Annotated[Path, "folder of the table and the corrected labels, created"]
    corrections: Annotated[
        Path | None,
        "folder of corrected labels, named like the predictions, such as a report exports",
    ] = None
    scans: Annotated[Path | None, "the scans, if they are elsewhere now"] = None
    labelled: Annotated[
        Path | None, "labelled scans that the run was trained on: they are in the table too"
    ] = None
    passed: Annotated[
        bool, "also take predictions as labels that review_marks.csv marks with pass"
    ] = False
    source: Source = "auto"
