"""How healthy an encoder is, without labels: functions of embeddings, scores and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Score(NamedTuple):
    """The score of a task and the score of random guesses."""

    value: float
    chance: float

    @property
    def above_chance(self) -> float:
        """0 at chance, 1 where every prediction is right; 0 where a guess cannot fail."""
        if self.chance == 1:
            return 0.0
        return (self.value - self.chance) / (1 - self.chance)


def chance_scores(metrics: Mapping[str, float] | Mapping[str, Tensor]) -> dict[str, Score]:
    """The metrics that have a chance level, by name.

    `accuracy` is paired with `chance`, and `rotation/accuracy` with `rotation/chance`. The chance
    level of `explained`, a share of variance, is 0.
    """
    scores = {}
    for name, value in metrics.items():
        kind = name.rpartition("/")[2]
        chance = name.removesuffix(kind) + "chance"
        if kind == "accuracy" and chance in metrics:
            scores[name] = Score(float(value), float(metrics[chance]))
        elif kind == "explained":
            scores[name] = Score(float(value), 0.0)
    return scores


def spread(embeddings: Tensor) -> float:
    """Standard deviation of L2-normalised embeddings, relative to the ideal 1 / sqrt(width).

    Mean over dimensions: 0 where all embeddings are the same, about 1 where they fill the sphere
    evenly (Chen and He 2021, figure 2).

    Args:
        embeddings: (n, width).
    """
    unit = F.normalize(embeddings.float(), dim=1)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


def effective_rank(embeddings: Tensor) -> float:
    """RankMe: exponential of the entropy of the normalised singular values.

    From 1, all in one direction, to the smaller of `n` and `width` (Garrido et al. 2023, eq. 1).
    Not centred, as in the paper.

    Args:
        embeddings: (n, width).
    """
    # float64: small singular values count in the entropy, too
    singular = torch.linalg.svdvals(embeddings.double())
    share = singular / singular.sum().clamp(min=1e-300)
    return float(torch.special.entr(share).sum().exp())


def share_with_gradient(parameters: Iterable[nn.Parameter]) -> float:
    """Share of parameters that are in a tensor with a gradient other than zero.

    To be measured before the update, which clears the gradients.
    """
    total = 0
    with_gradient = 0
    for parameter in parameters:
        total += parameter.numel()
        if parameter.grad is not None and bool(parameter.grad.any()):
            with_gradient += parameter.numel()
    return with_gradient / total
