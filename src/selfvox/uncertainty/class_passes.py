"""Monte-Carlo dropout passes of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfvox.models.classifier import Classifier
from selfvox.uncertainty.mc_dropout import PASSES_AT_ONCE, DropoutMasks


def run_class_passes(
    network: Classifier, masks: DropoutMasks, image: torch.Tensor, passes: Sequence[int]
) -> torch.Tensor:
    """Probabilities (pass, class) of one image (1, channel, *space) by these sub-networks.

    What the passes share is computed once: all of the encoder, where nothing is dropped in it.
    """
    dropping, few = masks.dropout.encoder > 0, PASSES_AT_ONCE[image.device.type]
    shared = image if dropping else network.encoder.embed(image)
    found = []
    with masks:
        for first in range(0, len(passes), few):
            now = list(passes[first : first + few])
            # always as many at a time: the arithmetic of a lone pass differs in the last digit
            full = now + now[-1:] * (few - len(now))
            masks.begin(full)
            batch = shared.expand(few, *shared.shape[1:])
            logits = network.answer(network.encoder.embed(batch) if dropping else batch)
            found.append(network.probabilities(logits)[: len(now)])
    return torch.cat(found)
