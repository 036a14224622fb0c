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
    out: Annotated[
        Path, "the folder, created; of scans with labels, without --bids, a data set of nnU-Net"
    ]
    source: Source = "auto"
    bids: Annotated[
        tuple[str, ...] | None,
        "write a BIDS folder instead; the suffix of each channel, such as T1w or T1w,FLAIR",
    ] = None
