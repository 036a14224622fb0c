"""What is built upon an encoder to classify: an answer for a whole image, nominal or by grades."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.models.encoder import Encoder


class Classifier(nn.Module):
    """An encoder, its embedding of the image, and two layers upon it.

    Nominal classes have one logit each. Of ordered ones, `forward` gives a logit for each but the first: that of "the
    class is at least this one". They are one score against thresholds that rise by construction (McCullagh 1980; rank
    consistent as CORAL, Cao et al. 2020), so that no answer contradicts another.

    Args:
        encoder: gives the embedding.
        classes: how many, at least 2.
        ordinal: whether they have an order.
        linear: put one layer upon the embedding in place of two, for a linear probe.
    """

    def __init__(self, encoder: Encoder, classes: int, ordinal: bool, linear: bool = False):
        super().__init__()
        self.encoder, self.ordinal = encoder, ordinal
        width = encoder.width
        last = nn.Linear(width, 1 if ordinal else classes)
        # training starts at chance
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.head = (
            nn.Sequential(last)
            if linear
            else nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), last)
        )
        if ordinal:
            self.steps = nn.Parameter(torch.full((classes - 2,), 0.5413))  # softplus makes 1 of it

    @torch.no_grad()
    def start_at(self, counts: Sequence[int]) -> None:
        """Let a fresh head answer with the shares of the classes, so that no step is spent on learning these.

        Args:
            counts: training scans of each class; one more is counted, so that none is impossible.
        """
        shares = torch.tensor(counts, dtype=torch.float64) + 1
        shares /= shares.sum()
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        if not self.ordinal:
            last.bias.copy_(shares.log())
            return
        at_least = shares.flip(0).cumsum(0).flip(0)[1:].logit()
        last.bias.fill_(float(at_least.mean()))
        # the inverse of softplus
        self.steps.copy_((at_least[:-1] - at_least[1:]).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> (batch, class) or, of ordered classes, (batch, class - 1) logits, float32."""
        return self.answer(self.encoder.embed(x))

    def answer(self, embedding: Tensor) -> Tensor:
        """Logits from the embedding (batch, width)."""
        logits: Tensor = self.head(embedding).float()
        if not self.ordinal:
            return logits
        rising = F.pad(F.softplus(self.steps.float()).cumsum(0), (1, 0))
        return logits - (rising - rising.mean())

    def loss(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Cross-entropy; of ordered classes the mean of that of "at least this one" (Frank and Hall 2001)."""
        if not self.ordinal:
            return F.cross_entropy(logits, answer)
        at_least = answer[:, None] > torch.arange(logits.shape[1], device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, at_least.to(logits.dtype))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(batch, class), summing to one."""
        if not self.ordinal:
            return logits.softmax(1)
        at_least = F.pad(F.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1), value=0.0)
        return (at_least[:, :-1] - at_least[:, 1:]).clamp(min=0)


def decide_class(probabilities: Tensor, ordinal: bool) -> Tensor:
    """The number of the class: the most probable; of ordered ones the median, the last that is at least even odds.

    Args:
        probabilities: (batch, class), summing to one.
        ordinal: whether the classes have an order.
    """
    if not ordinal:
        return probabilities.argmax(1)
    at_least = probabilities.flip(1).cumsum(1).flip(1)[:, 1:]
    return (at_least >= 0.5).sum(1)
