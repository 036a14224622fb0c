"""How much of a pre-trained encoder is left while it is fine-tuned: linear CKA of each level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from selfvox.runs.device import Fabric, inference_mode

METRIC = "cka_level_"  # and the number of the level, the finest first
_CROPS = 2  # a forward pass of each, each time
_PLACES = 2048  # of each level
_SEED = 0


class FeatureSurvival:
    """Compares the features of an encoder with those that it has when this is made.

    No random number of the training is drawn, and the mode of the encoder is restored, so that the
    weights are the same with and without it.

    Args:
        encoder: with its pre-trained weights, on the device.
        samples: crops, as the training takes them.
        fabric: device and arithmetic.
    """

    def __init__(self, encoder: nn.Module, samples: Dataset[dict[str, Tensor]], fabric: Fabric):
        self._encoder = encoder
        self._fabric = fabric
        self._images = [samples[number]["image"] for number in range(_CROPS)]
        self._before = self._features()

    def measure(self) -> dict[str, float]:
        """The linear CKA of each level, 1 where its features are those of the pre-training."""
        pairs = zip(self._before, self._features(), strict=True)
        values = {
            f"{METRIC}{level}": linear_cka(before, after)
            for level, (before, after) in enumerate(pairs, start=1)
        }
        # of features that are all the same none is defined
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _features(self) -> list[Tensor]:
        """Features (place, channel) of each level, at the same places every time."""
        was_training = self._encoder.training
        self._encoder.eval()
        drawn = torch.Generator().manual_seed(_SEED)
        levels: list[list[Tensor]] = []
        with inference_mode(self._fabric):
            for image in self._images:
                maps = self._encoder(self._fabric.to_device(image[None]))
                for level, features in enumerate(maps):
                    flat = features.movedim(1, -1).flatten(0, -2)
                    places = torch.randperm(len(flat), generator=drawn)[: _PLACES // _CROPS]
                    if level == len(levels):
                        levels.append([])
                    levels[level].append(flat[places.to(flat.device)].double().cpu())
        self._encoder.train(was_training)
        return [torch.cat(parts) for parts in levels]


def linear_cka(first: Tensor, second: Tensor) -> float:
    """||Y'X||² / (||X'X|| ||Y'Y||) of centred features (Kornblith et al. 2019); nan if constant.

    Args:
        first: (place, channel).
        second: of the same places; it may have other channels.
    """
    first = first - first.mean(0)
    second = second - second.mean(0)
    cross = (second.T @ first).square().sum()
    return float(cross / ((first.T @ first).norm() * (second.T @ second).norm()))
