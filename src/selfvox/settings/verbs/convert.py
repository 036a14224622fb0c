"""The settings of the verb `convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Source


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write scans of any layout and format as NIfTI files, without texts of their headers.

    Returns:
        The files, a scan with its channels after the other.

    Example:
        selfvox convert dicom/ --out nifti/
    """

    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "the folder, created; of scans with labels, a data set as nnU-Net has it"]
    source: Source = "auto"
