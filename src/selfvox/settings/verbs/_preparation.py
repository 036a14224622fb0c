"""How scans become arrays: the settings of every verb that may prepare scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from selfvox.settings.bounds import Edges, NotNegative, Spacing
from selfvox.settings.verbs._checks import check_choice, one_of
from selfvox.settings.verbs._shared import SCANS, Source

INTENSITIES = ("auto", "mri", "ct", "photo")


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """How scans become arrays; shared by every verb that may prepare scans."""

    source: Source = "auto"
    size: Annotated[
        Edges | None, "resize every scan to this many voxels per axis, such as 128,128,128", SCANS
    ] = None
    spacing: Annotated[
        Spacing | None, "resample every scan to this spacing in mm, such as 1,1,1", SCANS
    ] = None
    intensity: Annotated[
        str,
        "normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all channels, or "
        "one per channel, separated by commas",
        SCANS,
    ] = "auto"
    workers: Annotated[int, "processes that prepare scans; 0: one per core", SCANS, NotNegative] = 0
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler; its workers prepare the scans", SCANS
    ] = None

    def __post_init__(self) -> None:
        one_of(self, "size", "spacing")
        for kind in self.intensity.split(","):
            check_choice("intensity", kind.strip(), INTENSITIES)
