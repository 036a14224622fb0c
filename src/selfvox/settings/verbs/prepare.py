"""The settings of the verb `prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.bounds import NotNegative
from selfvox.settings.verbs._preparation import PreparationSettings
from selfvox.settings.verbs._shared import REGIONS, SCANS, Seed


@dataclass(frozen=True, kw_only=True)
class Prepare(PreparationSettings):
    """Prepare scans: orient, crop to the body, resample, normalise; one array per scan.

    Returns:
        The store's folder.

    Example:
        selfvox prepare scans/ --out store/
    """

    scans: Annotated[Path, "folder of scans, dataset.json, table.csv or a single scan"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the store: a folder, created or updated"]
    test: Annotated[int, "number of subjects held out for testing", NotNegative] = 0
    validation: Annotated[int, "number of subjects held out for validation", NotNegative] = 0
    regions: Annotated[str | None, REGIONS + "; default: those of the data set"] = None
    seed: Seed = 0
    check: Annotated[
        bool,
        "read every stored array and compare its checksum; damaged scans are prepared again; "
        "default: only arrays of another size or time than when they were written",
        SCANS,
    ] = False
