"""The settings of the verb `prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.bounds import NotNegative
from selfvox.settings.verbs._checks import is_default, parse_shard
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
    shard: Annotated[
        str | None,
        "I/N: prepare every N-th scan alone, from the I-th on, next to processes that prepare the "
        "others, such as 0/4; the same command without --shard then completes the store",
        SCANS,
    ] = None
    check: Annotated[
        bool,
        "read every stored array and compare its checksum; damaged scans are prepared again; "
        "default: only arrays of another size or time than when they were written",
        SCANS,
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            parse_shard(self.shard)
            for name in ("test", "validation", "check"):
                if not is_default(self, name):
                    raise ValueError(f"{name}: is for the whole store; leave it out of a shard")
