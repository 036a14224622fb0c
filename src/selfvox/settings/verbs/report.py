"""The settings of the verb `report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from selfvox.settings.verbs._shared import Source


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make a page for the browser from runs, predictions, embeddings or studies, to look.

    The page opens offline, without a server. Of predictions it is a table that begins with the
    least trusted case, with a viewer of the scan, its label and its maps; marks are exported as
    a table. Of embeddings it is a map of the scans.

    Returns:
        The page.

    Example:
        selfvox report predictions/ --out report/
    """

    folders: Annotated[
        tuple[Path, ...],
        "runs, folders of predictions or embeddings, or studies; several make one report",
        pydantic.Field(min_length=1),
    ] = field(kw_only=False)
    out: Annotated[Path, "folder of the report; an earlier report there is replaced"]
    scans: Annotated[
        Path | None,
        "the scans that were predicted; default: the folder that was named to `predict`",
    ] = None
    truth: Annotated[
        Path | None,
        "folder or data set with true labels; default: the labels next to the scans, if any",
    ] = None
    source: Source = "auto"
    watch: Annotated[
        bool,
        "make the page of a run again every minute, until the run ends; the page reloads itself",
    ] = False
    single_file: Annotated[
        bool, "everything in one page, with volumes of half the resolution where 10 MB need it"
    ] = False
