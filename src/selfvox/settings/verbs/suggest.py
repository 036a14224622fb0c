"""The settings of the verb `suggest`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from selfvox.settings.bounds import AtLeastOne


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Suggest which scans to label next: those that are least trusted, and unlike each other.

    Returns:
        A row for each suggested scan, the first one first.

    Example:
        selfvox suggest embeddings/ --predictions predictions/
    """

    embeddings: Annotated[Path, "a folder of vectors of the scans, as `embed` wrote it"] = field(
        kw_only=False
    )
    predictions: Annotated[
        Path | None, "predictions of these scans by several passes, for their trust"
    ] = None
    labelled: Annotated[
        Path | None, "scans that are labelled already: left out, and others are unlike them"
    ] = None
    count: Annotated[int, "how many scans to suggest", AtLeastOne] = 5
    by: Annotated[
        Literal["trust", "coverage"] | None,
        "trust: the least trusted; coverage: the most unlike those that are labelled or suggested; "
        "default: both, as far as they are known",
    ] = None
    out: Annotated[Path | None, "table of the suggestions, .csv"] = None

    def __post_init__(self) -> None:
        if self.by == "trust" and self.predictions is None:
            raise ValueError("by: trust is that of predictions; give --predictions too")
