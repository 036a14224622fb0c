"""Crops for training: sample `i` of a run is always the same crop, whatever workers or restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selfvox.data.preparation.case_table import subject_numbers
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import volume_edges
from selfvox.data.sampling.sample_order import case_index, partner_index, sample_generator
from selfvox.errors import DataError

TRIES = 8  # positions tried before a constant slice is returned
REPLACEMENTS = 8  # samples tried before a damaged one is an error


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops of stored cases, without end; order and positions follow from the seed.

    An item is `image` (channel, *crop) float32, `subject` (a number for the person), and with
    `labels` also `label` (*crop) uint8 and `spacing` (d,) in mm. With `pairs` it also is `partner`
    (channel, *crop): the crop at the same place of another scan of the person, or `image` itself
    where there is none.

    A crop that is damaged, or has values that are not finite, is replaced by that of the next
    sample, and the item's `left_out` says why: `ID: reason`, else an empty text. With `labels`, of
    which there are few, the error is raised.

    Args:
        store: prepared cases.
        cases: those to draw from; each epoch shows every case once.
        size: edges of the crop; beyond a scan's edge, the scan is mirrored.
        seed: of the order and the positions.
        labels: read labels too.
        foreground: share of the crops that are centred on a labelled voxel, of a class that is
            drawn uniformly, so that a small class is seen as often as a large one.
        axis: crops of slices: one voxel along this axis of the volume, an axis that the items do
            not have. Without labels, the first of a few positions with a slice that is not
            constant.
        pairs: read a second scan of the person too.
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
        pairs: bool = False,
    ):
        self.store = store
        self.cases = cases
        self.size = volume_edges(size, axis)
        self.seed = seed
        self.labels = labels
        self.foreground = foreground
        self.axis = axis
        self.pairs = pairs
        # numbered in the order of the cases, which is the same on all devices
        self._subjects = subject_numbers(cases)

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        if self.labels:
            return self._item(sample)
        left_out = ""
        for attempt in range(REPLACEMENTS):
            try:
                item: dict[str, Any] = self._item(sample + attempt)
            except DataError as error:
                if attempt == REPLACEMENTS - 1:
                    raise
                left_out = left_out or f"{self.cases[self._case_index(sample)].id}: {error}"
            else:
                break
        return {**item, "left_out": left_out}

    def _case_index(self, sample: int) -> int:
        return case_index(self.seed, sample, len(self.cases))

    def _item(self, sample: int) -> dict[str, Tensor]:
        index = self._case_index(sample)
        case = self.cases[index]
        start, image = self._draw_crop(case, sample_generator(self.seed, sample))
        arrays = {"image": image}
        if self.pairs:
            try:
                arrays["partner"] = self._partner_crop(index, sample, start, image)
            except DataError:
                # its own samples report it
                arrays["partner"] = image
        if self.labels:
            arrays["label"] = self.store.label_crop(case, start, self.size)
        item = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.axis is not None:
            # counted from the end, the axis is the same with channels and without
            dropped = self.axis - len(self.size)
            item = {name: tensor.squeeze(dropped) for name, tensor in item.items()}
        if self.labels:
            spacing = [mm for axis, mm in enumerate(case.spacing_mm) if axis != self.axis]
            item["spacing"] = torch.tensor(spacing)
        item["subject"] = torch.tensor(int(self._subjects[index]))
        return item

    def _draw_crop(
        self, case: StoredCase, rng: np.random.Generator
    ) -> tuple[list[int], np.ndarray]:
        """A crop's first voxel and its image."""
        start = self._draw_start(case, rng)
        image = self.store.crop(case, start, self.size)
        # a volume is hardly ever constant, and where a label is needed its position decides
        if self.axis is None or self.labels:
            return start, image
        for _ in range(TRIES - 1):
            if not _is_constant(image):
                break
            start = self._draw_start(case, rng)
            image = self.store.crop(case, start, self.size)
        return start, image

    def _partner_crop(
        self, index: int, sample: int, start: Sequence[int], image: np.ndarray
    ) -> np.ndarray:
        """The crop of another scan of the person, as far from its ends as `start` is from these."""
        scans = np.flatnonzero(self._subjects == self._subjects[index])
        partners = scans[scans != index]
        if not len(partners):
            return image
        case = self.cases[index]
        partner = self.cases[partners[partner_index(self.seed, sample, len(partners))]]
        partner_start = []
        axes = zip(start, case.shape, partner.shape, self.size, strict=True)
        for first, extent, partner_extent, edge in axes:
            room = extent - edge
            partner_room = partner_extent - edge
            if room > 0 and partner_room > 0:
                partner_start.append(round(first / room * partner_room))
            else:
                # the middle; of a scan that is smaller than the crop it is negative
                partner_start.append(partner_room // 2)
        return self.store.crop(partner, partner_start, self.size)

    def _draw_start(self, case: StoredCase, rng: np.random.Generator) -> list[int]:
        """The crop's first voxel.

        It is negative if the scan is smaller than the crop, which then reaches as far beyond both
        ends.
        """
        centre = None
        if self.foreground and rng.random() < self.foreground:
            centre = self._draw_labelled_voxel(case, rng)
        start = []
        for axis, (extent, edge) in enumerate(zip(case.shape, self.size, strict=True)):
            room = extent - edge
            if room <= 0:
                # as many mirrored voxels on both sides, as in prediction
                start.append(room // 2)
            elif centre is None:
                start.append(int(rng.integers(room + 1)))
            else:
                start.append(int(np.clip(centre[axis] - edge // 2, 0, room)))
        return start

    def _draw_labelled_voxel(self, case: StoredCase, rng: np.random.Generator) -> np.ndarray | None:
        """A voxel of a class that is drawn first, uniformly; None if the case has no label."""
        positions = self.store.foreground(case)
        if not len(positions):
            return None
        drawn_class = rng.choice(np.unique(positions[:, 0]))
        of_class = positions[positions[:, 0] == drawn_class]
        voxel: np.ndarray = of_class[rng.integers(len(of_class)), 1:]
        return voxel


def _is_constant(image: np.ndarray) -> bool:
    """Whether every channel (channel, *space) has a single value."""
    ranges = np.ptp(image.reshape(len(image), -1), axis=1)
    return not ranges.any()
