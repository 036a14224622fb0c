"""The settings of the verb `study`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from selfvox.settings.options import PathOrName
from selfvox.settings.verbs._checks import parse_shard
from selfvox.settings.verbs._shared import COMPUTER


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a label-efficiency study: methods x labels x seeds, each with a from-scratch baseline.

    Returns:
        The rows of the study's summary.

    Example:
        selfvox study plan.yaml --out study/
    """

    plan: Annotated[
        str, PathOrName, "the plan, a .yaml file, or the name of a plan shipped with selfvox"
    ] = field(kw_only=False)
    out: Annotated[Path, "the study: a folder, created; the same command again continues it"]
    data: Annotated[Path | None, "scans with labels; overrides the data of the plan"] = None
    corpus: Annotated[
        Path | None,
        "other scans to pre-train on, for methods with `scans: corpus`; overrides that of the plan",
    ] = None
    scale: Annotated[
        float,
        "share of all training steps to run, such as 0.01 for a trial",
        pydantic.Field(gt=0, le=1),
    ] = 1.0
    dry_run: Annotated[
        bool, "prepare the scans, time a few steps, print the expected cost, and stop"
    ] = False
    table: Annotated[bool, "no training; make tables and figures of the finished runs"] = False
    passes: Annotated[
        int | None,
        "no training; predict with the finished runs by this many passes of Monte-Carlo "
        "dropout, for several places, rates and votes",
        pydantic.Field(ge=2),
    ] = None
    shard: Annotated[
        str, "I/N: run every Nth cell from the Ith on, counted from 0; for job arrays", COMPUTER
    ] = "0/1"
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler; its workers run the cells", COMPUTER
    ] = None

    def __post_init__(self) -> None:
        parse_shard(self.shard)
