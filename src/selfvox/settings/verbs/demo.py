"""The settings of the command `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Seed


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole workflow on synthetic scans, in minutes.

    Pre-train, fine-tune, train a from-scratch baseline, predict and score.

    Returns:
        The folder of the demo.

    Example:
        selfvox demo --out demo
    """

    out: Annotated[Path, "folder of the demo; must be empty or new"] = Path("demo")
    seed: Seed = 0
