"""How healthy an encoder is, measured without labels: pure functions of embeddings, scores and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Score(NamedTuple):
    """What a task scores, and what guessing scores."""

    value: float
    chance: float

    @property
    def above_chance(self) -> float:
        """0 at chance, 1 where every answer is right; 0 where a guess cannot fail."""
        return 0.0 if self.chance == 1 else (self.value - self.chance) / (1 - self.chance)


def chance_scores(metrics: Mapping[str, float]) -> dict[str, Score]:
    """The scores that have a chance among a task's metrics, by name; `rotation/accuracy` has `rotation/chance`.

    `explained`, a share of variance, is 0 by chance.
    """
    found = {}
    for name, value in metrics.items():
        prefix, kind = name[: name.rfind("/") + 1], name.rpartition("/")[2]
        if kind == "accuracy" and f"{prefix}chance" in metrics:
            found[name] = Score(float(value), float(metrics[f"{prefix}chance"]))
        elif kind == "explained":
            found[name] = Score(float(value), 0.0)
    return found


def spread(embeddings: Tensor) -> float:
    """Standard deviation of L2-normalised embeddings, mean over dimensions, as a share of the ideal 1 / sqrt(width).

    0 where all are the same, about 1 where they fill the sphere evenly (Chen and He 2021, figure 2).

    Args:
        embeddings: (n, width).
    """
    unit = F.normalize(embeddings.float(), dim=1)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


def effective_rank(embeddings: Tensor) -> float:
    """RankMe: the exponential of the entropy of the normalised singular values (Garrido et al. 2023, eq. 1).

    From 1, all in one direction, to the smaller of `n` and `width`. Not centred, as in the paper.

    Args:
        embeddings: (n, width).
    """
    singular = torch.linalg.svdvals(embeddings.double())
    share = singular / singular.sum().clamp(min=1e-300)
    return float(torch.special.entr(share).sum().exp())


def share_with_gradient(parameters: Iterable[nn.Parameter]) -> float:
    """Share of parameters whose tensor has a gradient that is not zero throughout; to be asked before an update."""
    total = with_gradient = 0
    for parameter in parameters:
        total += parameter.numel()
        if parameter.grad is not None and bool(parameter.grad.any()):
            with_gradient += parameter.numel()
    return with_gradient / total
