"""Untrusted JSON: bounded size and depth, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from selfvox.errors import DataError, printable
from selfvox.runs.safe_open import open_regular

LARGEST_BYTES = 16 * 2**20  # a list of 100 000 scans needs about 10 MB


def read_json(path: Path, limit_bytes: int = LARGEST_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: the file is absent, larger than the limit, not UTF-8 or not strict JSON.
    """
    name = printable(path)
    with open_regular(path) as file:
        # one byte more than allowed shows that a file is too large, even one that grows meanwhile
        content = file.read(min(os.fstat(file.fileno()).st_size, limit_bytes) + 1)
    if len(content) > limit_bytes:
        raise DataError(
            f"{name}: larger than {limit_bytes >> 20} MiB; a list of cases is smaller than that"
        )
    try:
        # some editors begin a file with a byte order mark
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8 text; save it as UTF-8") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{name}: not valid JSON at {position} ({error.msg}); correct it there"
        ) from None
    except RecursionError:
        raise DataError(f"{name}: JSON nested too deeply; this is not a list of cases") from None
    except ValueError as error:  # from the hooks below, or a number with thousands of digits
        raise DataError(f"{name}: not strict JSON ({str(error)[:120]}); correct it") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:60]!r} occurs twice")
        values[key] = value
    return values


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite_float(text: str) -> float:
    # 1e999 would become infinity
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number
