"""The settings of the verb `doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Device, Source


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this computer before a long run: libraries, memory, disk, GPU.

    Each line is ok, warn or fail, with what to do. Exit code 5 if a line is fail, else 0.
    It takes seconds and leaves no file behind; convolutions are compared with float64.

    Returns:
        The lines, in the order in which they are printed.

    Example:
        selfvox doctor scans/ --out runs/
    """

    scans: Annotated[
        Path | None, "scans, or a store, of the run to come: what they need is estimated"
    ] = field(default=None, kw_only=False)
    out: Annotated[Path, "folder where stores and runs are to be"] = Path("runs")
    source: Source = "auto"
    device: Device = "auto"
