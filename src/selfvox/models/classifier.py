"""A classification network from any encoder: one answer per image, nominal or ordinal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.models.answer_head import answer_layer
from selfvox.models.encoder import Encoder


class Classifier(nn.Module):
    """An encoder, and a head of two layers on its embedding of the image.

    Nominal classes have one logit each. Ordinal ones have a logit for each class but the first:
    that of "the class is at least this one". They are one score against thresholds that rise by
    construction (McCullagh 1980; rank consistent as CORAL, Cao et al. 2020), so that no logit
    contradicts another.

    Args:
        encoder: computes the embedding.
        classes: how many, at least 2.
        ordinal: whether they have an order.
        linear: a head of one layer in place of two, for a linear probe.
    """

    def __init__(self, encoder: Encoder, classes: int, ordinal: bool, linear: bool = False):
        super().__init__()
        self.encoder = encoder
        self.ordinal = ordinal
        width = encoder.width
        last = answer_layer(width, 1 if ordinal else classes)
        if linear:
            self.head = nn.Sequential(last)
        else:
            self.head = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), last)
        if ordinal:
            # between neighbouring thresholds; softplus(0.5413) is 1
            self.steps = nn.Parameter(torch.full((classes - 2,), 0.5413))

    @torch.no_grad()
    def start_at(self, counts: Sequence[int]) -> None:
        """Set the biases so that a fresh head predicts the shares of the classes.

        No step of training is then spent on learning these.

        Args:
            counts: training scans of each class; one is added to each, so that none is impossible.
        """
        shares = torch.tensor(counts, dtype=torch.float64) + 1
        shares /= shares.sum()
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        if not self.ordinal:
            last.bias.copy_(shares.log())
            return
        at_least = shares.flip(0).cumsum(0).flip(0)[1:].logit()
        # thresholds are centred, so the bias is their mean
        last.bias.fill_(float(at_least.mean()))
        # the inverse of softplus
        self.steps.copy_((at_least[:-1] - at_least[1:]).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> logits (batch, class), or (batch, class - 1) if ordinal."""
        return self.classify(self.encoder.embed(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits, as `forward` gives them, from the embedding (batch, width)."""
        logits: Tensor = self.head(embedding).float()
        if not self.ordinal:
            return logits
        # softplus: every threshold is above the one before
        thresholds = F.pad(F.softplus(self.steps.float()).cumsum(0), (1, 0))
        return logits - (thresholds - thresholds.mean())

    def loss(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Cross-entropy; if ordinal, its mean over the thresholds (Frank and Hall 2001)."""
        if not self.ordinal:
            return F.cross_entropy(logits, answer)
        at_least = answer[:, None] > torch.arange(logits.shape[1], device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, at_least.to(logits.dtype))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(batch, class), summing to one."""
        if not self.ordinal:
            return logits.softmax(1)
        at_least = F.pad(F.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1), value=0.0)
        # rounding may leave a difference just below 0
        return (at_least[:, :-1] - at_least[:, 1:]).clamp(min=0)


def decide_class(probabilities: Tensor, ordinal: bool) -> Tensor:
    """The number of the class: the most probable one or, of ordinal classes, the median.

    The median is the last class for which "at least this one" has even odds.

    Args:
        probabilities: (batch, class), summing to one.
        ordinal: whether the classes have an order.
    """
    if not ordinal:
        return probabilities.argmax(1)
    at_least = probabilities.flip(1).cumsum(1).flip(1)[:, 1:]
    return (at_least >= 0.5).sum(1)
