"""Dropout in fine-tuning, at the places where the passes of `predict` drop units."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.runs.card import DropoutRates
from selfvox.settings.verbs import Finetune
from selfvox.uncertainty.mc_dropout import dropout_layers, dropping


class TrainingDropout:
    """Dropout after each activation of an encoder and its decoder, while active.

    Every sample of a batch is dropped independently. Masks come from torch's global generator,
    which the loop seeds in every step. The network itself has no new layers, so that validation
    and saved weights do not know of it. Without rates nothing is drawn.

    Args:
        encoder: part of a network.
        decoder: the other part.
        rates: None: no dropout.

    Raises:
        UsageError: a part has no activation, although its rate is not 0.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, rates: DropoutRates | None):
        self.layers: list[tuple[nn.Module, float]] = []
        self._drops_channels = False
        if rates is not None:
            self.layers = dropout_layers(encoder, decoder, rates.encoder, rates.decoder)
            self._drops_channels = rates.kind == "channel"

    def active(self) -> AbstractContextManager[None]:
        """While entered, units are dropped, also in a frozen encoder."""
        return dropping(self.layers, self._drop)

    def _drop(self, output: Tensor, rate: float) -> Tensor:
        """Drop units or channels of (batch, channel, *space)."""
        if self._drops_channels:
            return torch.feature_dropout(output, rate, train=True)
        return F.dropout(output, rate)


def dropout_rates(settings: Finetune) -> DropoutRates | None:
    """The rates of the settings; None where both are 0."""
    if settings.encoder_dropout == settings.decoder_dropout == 0:
        return None
    return DropoutRates(settings.encoder_dropout, settings.decoder_dropout, settings.dropout_kind)
