"""The settings of the verb `tissues`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Source


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Label three tissues in brain scans automatically, to pre-train a supervised baseline.

    Returns:
        The table of the labelled scans.

    Example:
        selfvox tissues scans/ --out labelled/
    """

    scans: Annotated[Path, "folder of skull-stripped scans, such as T1 MRI of brains"] = field(
        kw_only=False
    )
    out: Annotated[Path, "folder of the labels and their table; existing ones are kept"]
    source: Source = "auto"
