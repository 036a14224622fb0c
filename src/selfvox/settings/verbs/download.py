"""The settings of the command `download`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class Download:
    """Download a task of the Medical Segmentation Decathlon, with its labels.

    Returns:
        The folder of the task, which the other commands take.

    Example:
        selfvox download Task07_Pancreas data/
    """

    dataset: Annotated[str, "name of the task, such as Task07_Pancreas"] = field(kw_only=False)
    folder: Annotated[Path, "folder to create the task's folder in"] = field(kw_only=False)
