"""JSON-lines ledgers: one record per line, appended while the work goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_text
from selfvox.runs.progress import echo
from selfvox.runs.safe_open import open_regular
from selfvox.runs.typed_json import checked, parse


def append_record(ledger: Path, record: Mapping[str, Any]) -> None:
    """Append one record and fsync it; the file is created if it is missing."""
    line = json.dumps(record) + "\n"
    # a link in its place is not followed: the file it leads to would be changed
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(ledger, flags, 0o666), "a+b") as file:
        # else the record would be glued to the half line of a killed process, and both be lost
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(ledger: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """All records in the order they were appended; none if the file is missing.

    A line that is damaged is left out, such as one that a killed process wrote only half, or one
    with a checksum that does not match.

    Args:
        ledger: the file.
        kind: type of a record; by default any mapping.

    Raises:
        DataError: it is not a regular file.
    """
    if not ledger.exists():
        return []
    with open_regular(ledger) as file:
        lines = file.read().splitlines()
    records = []
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            record = checked(parse(dict[str, Any], json.loads(line), ledger.name), ledger.name)
            parse(kind, record, ledger.name)
        # deep nesting exhausts the stack
        except (DataError, ValueError, RecursionError):
            damaged.append(number)
        else:
            records.append(record)
    if damaged and damaged != [len(lines)]:
        echo(f"{ledger}: line {damaged[0]} is damaged and left out ({len(damaged)} in all)")
    return records


def write_records(ledger: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace all records, atomically."""
    write_text(ledger, "".join(json.dumps(record) + "\n" for record in records))
