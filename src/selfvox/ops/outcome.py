"""What a loss returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Batch = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a loss has to say."""

    loss: Tensor  # scalar, with gradient
    metrics: dict[str, Tensor]  # scalars, detached; `accuracy` has its `chance` beside it
