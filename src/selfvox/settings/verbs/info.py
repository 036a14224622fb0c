"""The settings of the command `info`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class Info:
    """List versions, devices, tasks, encoders and sources; `info tasks` describes each task.

    Returns:
        The listed facts by name.

    Example:
        selfvox info tasks
    """

    subject: Annotated[
        Literal["all", "tasks"], "all, or tasks: what each task does, its options and its cost"
    ] = field(default="all", kw_only=False)
    json: Annotated[bool, "print JSON"] = False
