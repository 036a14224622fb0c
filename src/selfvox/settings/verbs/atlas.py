"""The settings of the verb `atlas`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.bounds import AtLeastOne
from selfvox.settings.verbs._preparation import PreparationSettings


@dataclass(frozen=True, kw_only=True)
class Atlas(PreparationSettings):
    """Carry labels onto scans by registration: the labelled scans most like a scan vote.

    No network is trained. Several labelled scans also show how far they agree.

    Returns:
        The files of the predicted labels, one per scan.

    Example:
        selfvox atlas labelled/ new_scans/ --out predictions/
    """

    labelled: Annotated[Path, "folder of scans with labels, or a store"] = field(kw_only=False)
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "folder of the predictions; existing ones are kept"]
    atlases: Annotated[int, "at most so many labelled scans vote for each scan", AtLeastOne] = 5
