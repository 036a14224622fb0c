"""Two data sets as one: each sample comes from either, by chance with a fixed share."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class Mixture(Dataset[dict[str, Tensor]]):
    """Samples of two endless data sets; which one follows from the seed and the sample's number.

    Args:
        first: data set.
        second: data set.
        share: of the samples that are of the second one.
        seed: of the choice.
        stream: sets the choice apart from other random numbers of this seed, such as those of a
            mixture inside this one, which would choose alike.
    """

    def __init__(
        self,
        first: Dataset[dict[str, Tensor]],
        second: Dataset[dict[str, Tensor]],
        share: float,
        seed: int,
        stream: int = 4,
    ):
        self.first = first
        self.second = second
        self.share = share
        self.seed = seed
        self.stream = stream

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, self.stream, sample))
        is_second = rng.random() < self.share
        return (self.second if is_second else self.first)[sample]
