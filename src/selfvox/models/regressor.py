"""A regression network from any encoder: one number per image, such as an age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.models.answer_head import answer_layer
from selfvox.models.encoder import Encoder


class Regressor(nn.Module):
    """An encoder, and a head of two layers on its embedding of the image.

    The head gives a number in standard deviations from the mean of the training targets; both, and
    their median, are saved with the weights.

    Args:
        encoder: computes the embedding.
        linear: a head of one layer in place of two, for a linear probe.
    """

    mean: Tensor
    deviation: Tensor
    median: Tensor  # of the training targets: the best constant by the mean absolute error

    def __init__(self, encoder: Encoder, linear: bool = False):
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        last = answer_layer(width, 1)
        if linear:
            self.head = nn.Sequential(last)
        else:
            self.head = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), last)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("median", torch.zeros(()))

    @torch.no_grad()
    def start_at(self, targets: Sequence[float]) -> None:
        """Standardise by these targets, so that a fresh head predicts their mean.

        Args:
            targets: of the training scans, at least two different ones.
        """
        self.mean.fill_(float(np.mean(targets)))
        self.deviation.fill_(float(np.std(targets)))
        self.median.fill_(float(np.median(targets)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> (batch, 1), in the unit of the targets."""
        return self.classify(self.encoder.embed(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """As `forward`, from the embedding (batch, width); called as that of a `Classifier`."""
        score: Tensor = self.head(embedding).float()
        return score * self.deviation + self.mean

    def probabilities(self, predicted: Tensor) -> Tensor:
        """The numbers themselves: what passes and mirror images take the mean of."""
        return predicted

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 of standardised numbers, (batch, 1) and (batch,)."""
        errors = (predicted[:, 0] - target) / self.deviation
        return F.smooth_l1_loss(errors, torch.zeros_like(errors))
