"""The settings of the verb `preview`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.bounds import AtLeastOne, CropEdges
from selfvox.settings.verbs._preparation import PreparationSettings
from selfvox.settings.verbs._shared import Seed, Slices
from selfvox.settings.verbs.pretrain import DEFAULT_TASK, Task


@dataclass(frozen=True, kw_only=True)
class Preview(PreparationSettings):
    """Draw the examples that a pretext task makes from your scans, as a picture.

    Returns:
        The picture.

    Example:
        selfvox preview scans/ --out preview.png
    """

    scans: Annotated[Path, "folder of scans, or a store"] = field(kw_only=False)
    out: Annotated[Path, "the picture to write, .png"] = Path("preview.png")
    task: Task = DEFAULT_TASK
    crop: Annotated[CropEdges | None, "size of the crops in voxels; default: from the scans"] = None
    slices: Slices = None
    count: Annotated[int, "number of scans to show", AtLeastOne] = 3
    seed: Seed = 0
