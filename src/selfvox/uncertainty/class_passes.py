"""Monte-Carlo dropout passes of a network of whole scans."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.uncertainty.mc_dropout import PASSES_AT_ONCE, DropoutMasks


def run_class_passes(
    network: Classifier | Regressor,
    masks: DropoutMasks,
    image: torch.Tensor,
    passes: Sequence[int],
) -> torch.Tensor:
    """Probabilities (pass, class) of one image (1, channel, *space) by these sub-networks.

    Of a regression network, its numbers (pass, 1).

    What the passes share is computed once: all of the encoder, if no dropout is in it.
    """
    drops_in_encoder = masks.dropout.encoder > 0
    batch_size = PASSES_AT_ONCE[image.device.type]
    # without dropout in the encoder its embedding is the same in every pass
    shared = image if drops_in_encoder else network.encoder.embed(image)
    batch = shared.expand(batch_size, *shared.shape[1:])
    probabilities = []
    with masks:
        for first in range(0, len(passes), batch_size):
            numbers = list(passes[first : first + batch_size])
            # always a full batch: the arithmetic of a single pass differs in the last digit
            filler = [numbers[-1]] * (batch_size - len(numbers))
            masks.begin(numbers + filler)
            embedding = network.encoder.embed(batch) if drops_in_encoder else batch
            logits = network.classify(embedding)
            probabilities.append(network.probabilities(logits)[: len(numbers)])
    return torch.cat(probabilities)
