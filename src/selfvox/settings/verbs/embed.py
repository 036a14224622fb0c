"""The settings of the verb `embed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.verbs._shared import Device, Precision, Source


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Describe each scan by one vector, the features that an encoder computes from it.

    Returns:
        The file of the vectors, `embeddings.npz`.

    Example:
        selfvox embed runs/pretrained scans/ --out embeddings/
    """

    run: Annotated[Path, "a pre-training run, its encoder/ folder, or a fine-tuning run"] = field(
        kw_only=False
    )
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "folder of the vectors, table and pictures, created"]
    source: Source = "auto"
    crops: Annotated[bool, "also write one vector for each crop of a scan, with its place"] = False
    query: Annotated[
        str | None, "id, file or subject of one of the scans: list and draw the scans most like it"
    ] = None
    by: Annotated[
        tuple[str, ...],
        "columns of --table, or grade, separated by commas: colour the map by them, and measure "
        "how well the vectors tell them, and how unequally for the groups of the others, such as "
        "age,sex",
    ] = ()
    table: Annotated[
        Path | None,
        "CSV or TSV table with a row for each scan or subject, named in its first column; default: "
        "participants.tsv next to the scans",
    ] = None
    precision: Precision = "auto"
    device: Device = "auto"
