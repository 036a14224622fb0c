"""Whole scans of one shape, each with its class or target: samples of tasks on whole scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.sample_order import case_index, sample_generator
from selfvox.ops.resize import resize


class WholeScans(Dataset[dict[str, Tensor]]):
    """Stored cases, resized, without end: sample `i` of a run is always the same case.

    An item is `image` (channel, *size) float32, `answer` (the number of its class, or its target in
    float32), and `spacing` (d,) of the resized image, in mm.

    Args:
        store: prepared cases.
        cases: those to draw from; each epoch shows every case once.
        size: edges that every image is resized to, in voxels.
        seed: of the order.
        answers: number of the class, or target, by case id.
        balance: draw a class first, uniformly, and then one of its cases.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[StoredCase],
        size: Sequence[int],
        seed: int,
        answers: Mapping[str, int] | Mapping[str, float],
        *,
        balance: bool = False,
    ):
        self.store = store
        self.cases = list(cases)
        self.size = tuple(size)
        self.seed = seed
        self.answers = dict(answers)
        self.balance = balance
        by_class: dict[float, list[StoredCase]] = {}
        if balance:
            for case in self.cases:
                by_class.setdefault(self.answers[case.id], []).append(case)
        self._by_class = [by_class[answer] for answer in sorted(by_class)]

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        case = self._draw_case(sample)
        axes = zip(case.spacing_mm, case.shape, self.size, strict=True)
        return {
            "image": resized_scan(self.store, case, self.size),
            "answer": torch.tensor(self.answers[case.id]),
            # of the resized image: augmentation rotates in mm
            "spacing": torch.tensor([mm * extent / edge for mm, extent, edge in axes]),
        }

    def _draw_case(self, sample: int) -> StoredCase:
        if not self.balance:
            return self.cases[case_index(self.seed, sample, len(self.cases))]
        rng = sample_generator(self.seed, sample)
        of_class = self._by_class[int(rng.choice(len(self._by_class)))]
        return of_class[int(rng.integers(len(of_class)))]


def resized_scan(store: Store, case: StoredCase, size: Sequence[int]) -> Tensor:
    """The case's whole image resized, float32 (channel, *size)."""
    first = (0,) * len(case.shape)
    image = torch.from_numpy(store.crop(case, first, case.shape))
    return resize(image[None], size)[0]
