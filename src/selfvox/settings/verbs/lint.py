"""The settings of the verb `lint`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._preparation import PreparationSettings


@dataclass(frozen=True, kw_only=True)
class Lint(PreparationSettings):
    """Look for mistakes in a data set, without training: files, grids, values, labels.

    The exit code is 3 if a finding is an error. Nothing is written without --out.

    Returns:
        The findings, the worst first.

    Example:
        selfvox lint scans/ --out lint/
    """

    scans: Annotated[Path, "folder of scans, dataset.json, table.csv or a single scan"] = field(
        kw_only=False
    )
    out: Annotated[Path | None, "folder for tables and for sheets of pictures of all scans"] = None
