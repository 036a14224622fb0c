"""What a loss returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Batch = dict[str, Tensor]


class Outcome(NamedTuple):
    """A loss and its metrics."""

    loss: Tensor  # scalar, with gradient
    metrics: dict[str, Tensor]  # scalars, detached; `accuracy` comes with its `chance`
