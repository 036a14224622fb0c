"""Tags of DICOM files: parsed within limits and without warnings; no value is trusted."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom import uid

# headers end long before; the pixels of a whole study need not be read to list it
HEADER_BYTES = 4 * 2**20
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, to the terminal or to a log: they quote values, and a value may be a name."""
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        yield


def parse(raw: bytes, tags: Sequence[str], *, pixels: bool) -> pydicom.Dataset:
    """The named tags of a file's bytes, and the pixels where asked for.

    Raises:
        ValueError: it is deflated. The parser may raise anything else.
    """
    if _DEFLATED in raw[:HEADER_BYTES]:  # pydicom would inflate it whole, to whatever size
        raise ValueError("deflated")
    return pydicom.dcmread(
        BytesIO(raw), force=True, stop_before_pixels=not pixels, specific_tags=list(tags)
    )


def values_of(value: Any) -> Sequence[Any]:
    """The values of a tag that may have one, several or none."""
    if value is None:
        return []
    return [value] if isinstance(value, str | float | int) else list(value)


def numbers_of(value: Any, count: int) -> tuple[float, ...]:
    """The `count` finite numbers of a tag, or none."""
    try:
        numbers = tuple(float(number) for number in values_of(value))
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def integer_of(value: Any) -> int | None:
    """The whole number of a tag, or none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
