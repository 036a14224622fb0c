"""What checks raise, and the refusals that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from selfvox.errors import UsageError
from selfvox.ops.outcome import Batch


def require(condition: Any, message: str) -> None:
    """An assertion that no optimised Python leaves out."""
    if not condition:
        raise AssertionError(message)


def refusal_of(action: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the UsageError that the call raises; empty where it raises none."""
    try:
        action(*args, **kwargs)
    except UsageError as error:
        return str(error)
    return ""


def require_equal(first: Batch, second: Batch, message: str) -> None:
    """Two batches have the same entries, bit by bit."""
    require(first.keys() == second.keys(), f"{message}: entries {[*first]} and {[*second]}")
    for key, value in first.items():
        require(torch.equal(value, second[key]), f"{message}: {key} differs")
