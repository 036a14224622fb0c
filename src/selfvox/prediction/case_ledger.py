"""The ledger of a folder of predictions: a line for each predicted case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.runs.ledger import read_records, write_records
from selfvox.runs.typed_json import with_checksum

LEDGER = "cases.jsonl"


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """A line of the ledger: a predicted case."""

    id: str
    scan: list[str]  # SHA-256 of its files
    files: dict[str, str]  # SHA-256 of each file of its prediction
    review: dict[str, Any] = dataclasses.field(default_factory=dict)
    answer: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    file: str | None = None
    work: dict[str, Any] | None = None
    trained_on: bool = False
    distance: float | None = None
    unlike: bool = False


def read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of each case by its id; of several, the last."""
    known = {field.name for field in dataclasses.fields(CaseRecord)}
    records = {}
    for content in read_records(folder / LEDGER, CaseRecord):
        records[content["id"]] = {key: content[key] for key in content if key in known}
    return records


def write_ledger(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace all records, atomically.

    Args:
        folder: of the predictions.
        records: of each case by its id.
    """
    write_records(folder / LEDGER, map(with_checksum, records.values()))
