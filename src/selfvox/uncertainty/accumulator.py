"""Sums over the passes of one scan, voxel by voxel: votes, probabilities and more."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfvox.uncertainty.labelling import Labelling
from selfvox.uncertainty.vote_rules import (
    VOTE_RULES,
    VoteOptions,
    VoteRule,
    VoteTotals,
    borda_points,
)

ScanPart = tuple[slice, ...]  # a part of a scan, along its first axes; further axes are complete
STEPS = 255  # a probability is stored in this many steps, in one byte


class VoteAccumulator:
    """Adds up the passes over one scan.

    Apart from the stored passes, nothing in it grows with their number.

    An output is a class, or a region where the network was trained on regions.

    Args:
        passes: how many will be added.
        labelling: what the outputs mean.
        space: edges of the scan in voxels.
        needs: sums to keep beyond votes and probabilities, as vote rules and maps name them:
            `points`, `entropies`, `squares`.
        device: where the sums are kept.
        halves: keep the votes of the first half of the passes too.
        passes_file: file for the probabilities of every pass, in 255ths, (pass, output, *space);
            None stores none.
    """

    def __init__(
        self,
        passes: int,
        labelling: Labelling,
        space: Sequence[int],
        needs: Collection[str],
        device: torch.device,
        passes_file: Path | None = None,
        *,
        halves: bool = False,
    ):
        self.passes = passes
        self.labelling = labelling
        self.space = tuple(space)
        outputs = labelling.outputs()
        shape = (outputs, *space)
        # the smallest types that can count this far: a scan has hundreds of millions of voxels
        ballot_type = torch.uint8 if passes < 256 else torch.int16
        point_type = torch.int16 if passes * (outputs - 1) < 2**15 else torch.int32

        def zeros_if(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
            return torch.zeros(shape, dtype=dtype, device=device) if name in needs else None

        self.ballots = torch.zeros(shape, dtype=ballot_type, device=device)
        self.first_half = torch.zeros_like(self.ballots) if halves else None
        self.sums = torch.zeros(shape, device=device)
        self.squares = zeros_if("squares", shape, torch.float32)
        self.entropies = zeros_if("entropies", self.space, torch.float32)
        self.points = zeros_if("points", shape, point_type)
        self.voxels = np.zeros((passes, outputs), np.int64)  # of each pass's own label
        self._stored: np.ndarray | None = None
        if passes_file is not None:
            _reserve(passes_file, passes * math.prod(shape))
            # on disk: many passes over a scan exceed the memory
            self._stored = np.memmap(passes_file, np.uint8, "r+", shape=(passes, *shape))

    @property
    def stores_passes(self) -> bool:
        """Whether the probabilities of every pass are kept."""
        return self._stored is not None

    def add(self, number: int, place: ScanPart, probabilities: Tensor) -> None:
        """Add the probabilities (output, *place) of pass `number` in a part of the scan."""
        all_outputs = (slice(None), *place)
        for output, mask in enumerate(self.labelling.masks(probabilities)):
            self.ballots[output][place] += mask
            if self.first_half is not None and number < self.passes // 2:
                self.first_half[output][place] += mask
            self.voxels[number, output] += int(mask.sum())
        self.sums[all_outputs] += probabilities
        if self.squares is not None:
            self.squares[all_outputs].addcmul_(probabilities, probabilities)
        if self.entropies is not None:
            self.entropies[place] += self.labelling.entropy(probabilities)
        if self.points is not None:
            self.points[all_outputs] += borda_points(probabilities[None])
        if self._stored is not None:
            steps = (probabilities * STEPS).round_().to(torch.uint8)
            self._stored[number][all_outputs] = steps.cpu().numpy()

    def mean(self) -> Tensor:
        """Mean probabilities (output, *space)."""
        return self.sums / self.passes

    def stored_passes(self, output: int, start: int, stop: int) -> np.ndarray:
        """Probabilities of one output in 255ths, (pass, voxel) uint8, of a range of voxels."""
        assert self._stored is not None
        return np.array(self._stored[:, output].reshape(self.passes, -1)[:, start:stop])

    def scores(self, rule: VoteRule, options: VoteOptions) -> Tensor:
        """Scores (output, *space) of a vote."""
        totals = VoteTotals(self.ballots, self.sums, self.points, self.passes)
        return self.labelling.scores(rule, totals, options)

    def majority(self, ballots: Tensor, passes: int) -> Tensor:
        """Scores (output, *space) of the majority of some of the passes, from their ballots."""
        totals = VoteTotals(ballots, self.sums, self.points, passes)
        return self.labelling.scores(VOTE_RULES["majority"], totals, VoteOptions())


def _reserve(path: Path, size: int) -> None:
    """Reserve `size` bytes on the disk: a mapped file that fills it later kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, 2**20):  # macOS has no such call
            file.write(bytes(min(2**20, size - start)))
