"""JSON-lines ledgers: one record per line, appended while the work goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfvox.runs.atomic_files import write_text


def append_record(ledger: Path, record: Mapping[str, Any]) -> None:
    """Append one record and fsync it; the file is created if it is missing."""
    line = json.dumps(record) + "\n"
    with ledger.open("a+b") as file:
        # else the record would be glued to the half line of a killed process, and both be lost
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(ledger: Path) -> list[dict[str, Any]]:
    """All records in the order they were appended; none if the file is missing.

    A line that a killed process wrote only half is left out.
    """
    if not ledger.exists():
        return []
    records = []
    for line in ledger.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def write_records(ledger: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace all records, atomically."""
    write_text(ledger, "".join(json.dumps(record) + "\n" for record in records))
