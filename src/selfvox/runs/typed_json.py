"""JSON files that selfvox wrote: a checksum over their content, and types, checked as a whole."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from selfvox.errors import DataError, printable
from selfvox.runs import strict_json
from selfvox.runs.atomic_files import write_json

CHECKSUM = "checksum"  # the key of the SHA-256 over all other keys and their values
LARGEST_BYTES = 2**28  # cards and records of runs have up to 1 kB for each scan that was trained on
T = TypeVar("T")


def write_checked(file: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write a mapping as JSON, with its checksum, atomically.

    Without `sync` a power failure may take it, or damage it, which its checksum shows.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_json(file, with_checksum(content), sync=sync)


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with the checksum of its content, in place of one that it has."""
    content = {key: value for key, value in content.items() if key != CHECKSUM}
    return {**content, CHECKSUM: _checksum(content)}


def read_checked(file: Path, limit_bytes: int = LARGEST_BYTES) -> dict[str, Any]:
    """The mapping in a JSON file, without the checksum, which has to match where there is one.

    Raises:
        DataError: the file is missing, not a regular file, not strict JSON, no mapping, or its
            content is not what was written.
    """
    content = strict_json.read_json(file, limit_bytes)
    if not isinstance(content, dict):
        raise DataError(f"{printable(file)}: damaged (is no mapping)")
    return checked(content, f"{printable(file)}")


def checked(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The content without its checksum, which has to match where there is one.

    Raises:
        DataError: it does not.
    """
    # files of earlier versions have none
    if CHECKSUM in content and content.pop(CHECKSUM) != _hash(content):
        raise DataError(f"{origin}: damaged (its checksum does not match)")
    return content


def parse(kind: Any, content: Any, origin: str) -> Any:
    """Content from JSON as a value of this type, such as a dataclass, checked as a whole.

    Unknown keys of a dataclass are ignored: a newer version may have written them.

    Args:
        kind: the type, with pydantic's constraints.
        content: lists, mappings, texts, numbers, as JSON gives them.
        origin: the file, for the message.

    Raises:
        DataError: the first key that is missing, or has a value of another type.
    """
    # from text: only there, pydantic takes a list for a tuple and is strict in all else
    return parse_text(kind, json.dumps(content), origin)


def parse_text(kind: Any, text: str | bytes, origin: str) -> Any:
    """JSON as a value of this type, as in `parse`.

    Raises:
        DataError: it is no JSON, or as in `parse`.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = printable(".".join(map(str, first["loc"])))
        reason = printable(first["msg"].removeprefix("Value error, "))
        if first["type"] == "missing":
            reason = f"has no '{place}'"
        elif place:
            reason = f"'{place}': {reason}"
        raise DataError(f"{origin}: damaged ({reason})") from None


@functools.cache  # making one takes longer than checking a file
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _checksum(content: Mapping[str, Any]) -> str:
    # as it is read again: tuples are lists, and all keys are texts
    return _hash(json.loads(json.dumps(content)))


def _hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of content as JSON gives it, in any order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
