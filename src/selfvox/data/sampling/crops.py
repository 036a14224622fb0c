"""The crops that feed training: sample `i` of a run is always the same crop, whatever the workers or restarts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crop_size import volume_edges

TRIES = 8  # places to look at before an empty slice is taken


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops of stored cases, endless: the order of epoch `e` and the place of crop `i` follow from the seed.

    An item is `image` (channel, *crop) float32, `subject` a number for the person it shows, and with `labels` also
    `label` (*crop) uint8.

    Args:
        store: prepared cases.
        cases: those to draw from; each epoch shows every case once.
        size: edges of the crop; where it reaches over a scan's edge, the scan is mirrored.
        seed: of the order and the places.
        labels: read labels too.
        foreground: share of the crops that are centred on a labelled voxel, of a class drawn evenly.
        axis: crops of slices: one voxel along this axis of the volume, which the items do not have. Without labels,
            the first of a few places whose slice is not constant.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[StoredCase],
        size: Sequence[int],
        seed: int,
        *,
        labels: bool = False,
        foreground: float = 0.0,
        axis: int | None = None,
    ):
        self.store, self.cases, self.seed = store, list(cases), seed
        self.number = {
            subject: n for n, subject in enumerate(dict.fromkeys(case.subject for case in cases))
        }
        self.size = volume_edges(size, axis)
        self.labels, self.foreground, self.axis = labels, foreground, axis

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        case = self.cases[case_index(self.seed, sample, len(self.cases))]
        start, image = self._cut(case, np.random.default_rng((self.seed, 1, sample)))
        item = {
            "image": torch.from_numpy(image),
            "subject": torch.tensor(self.number[case.subject]),
        }
        if self.labels:
            item["label"] = torch.from_numpy(self.store.label_crop(case, start, self.size))
        if self.axis is not None:
            # counted from the end, the axis is the same one with channels and without
            dropped = self.axis - len(self.size)
            item |= {name: item[name].squeeze(dropped) for name in item if name != "subject"}
        return item

    def _cut(self, case: StoredCase, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
        """A crop's first corner and its image."""
        start = self._place(case, rng)
        image = self.store.crop(case, start, self.size)
        for _ in range(0 if self.axis is None or self.labels else TRIES - 1):
            if np.ptp(image.reshape(len(image), -1), axis=1).any():
                break
            start = self._place(case, rng)
            image = self.store.crop(case, start, self.size)
        return start, image

    def _place(self, case: StoredCase, rng: np.random.Generator) -> list[int]:
        """The crop's first corner; negative, with the overhang spread over both ends, where the scan is smaller."""
        focus = None
        if self.foreground and rng.random() < self.foreground:
            positions = self.store.foreground(case)
            if len(positions):
                classes = np.unique(positions[:, 0])
                of_class = positions[positions[:, 0] == rng.choice(classes)]
                focus = of_class[rng.integers(len(of_class)), 1:]
        start = []
        for axis, (have, want) in enumerate(zip(case.shape, self.size, strict=True)):
            room = have - want
            if room <= 0:
                start.append(room // 2)
            elif focus is None:
                start.append(int(rng.integers(room + 1)))
            else:
                start.append(int(np.clip(focus[axis] - want // 2, 0, room)))
        return start


def case_index(seed: int, sample: int, count: int) -> int:
    """Which of so many cases sample `sample` shows: every epoch shows each once, in an order of its own."""
    epoch, position = divmod(sample, count)
    return int(_order(seed, epoch, count)[position])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)
