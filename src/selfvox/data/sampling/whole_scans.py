"""Whole scans of one shape, each with its class: what a classification is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crops import case_index
from selfvox.ops.resize import resize


class WholeScans(Dataset[dict[str, Tensor]]):
    """Stored cases, resized, endless: sample `i` of a run is always the same case.

    An item is `image` (channel, *size) float32, `answer` the number of its class, and `spacing` (d,) of the resized
    image, in mm.

    Args:
        store: prepared cases.
        cases: those to draw from; each epoch shows every case once.
        size: edges that every image is resized to, in voxels.
        seed: of the order.
        answers: number of the class by case id.
        balance: draw a class first, all equally often, and then one of its cases.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[StoredCase],
        size: Sequence[int],
        seed: int,
        answers: Mapping[str, int],
        *,
        balance: bool = False,
    ):
        self.store, self.cases, self.size, self.seed = store, list(cases), tuple(size), seed
        self.answers, self.balance = dict(answers), balance
        classes = sorted(set(self.answers.values()))
        self.by_class = [
            [case for case in self.cases if self.answers[case.id] == answer] for answer in classes
        ]

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        case = self._drawn(sample)
        edges = [
            step * have / want
            for step, have, want in zip(case.spacing_mm, case.shape, self.size, strict=True)
        ]
        return {
            "image": resized_scan(self.store, case, self.size),
            "answer": torch.tensor(self.answers[case.id]),
            "spacing": torch.tensor(edges),
        }

    def _drawn(self, sample: int) -> StoredCase:
        if not self.balance:
            return self.cases[case_index(self.seed, sample, len(self.cases))]
        rng = np.random.default_rng((self.seed, 1, sample))
        of_class = self.by_class[int(rng.choice(len(self.by_class)))]
        return of_class[int(rng.integers(len(of_class)))]


def resized_scan(store: Store, case: StoredCase, size: Sequence[int]) -> Tensor:
    """The case's whole image resized, float32 (channel, *size)."""
    return resize(
        torch.from_numpy(store.crop(case, (0,) * len(case.shape), case.shape))[None], size
    )[0]
