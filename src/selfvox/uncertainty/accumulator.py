"""What many passes over one scan add up to, voxel by voxel: votes, probabilities, and what is needed for maps."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.uncertainty import vote_rules

ScanPart = tuple[slice, ...]  # a part of a scan, along its axes; those not named are whole


class VoteAccumulator:
    """What the passes over one scan add up to, voxel by voxel; nothing in it grows with their number.

    Args:
        passes: how many will be added.
        classes: how many there are.
        space: the scan's edges.
        wants: what is summed up beside votes and probabilities: of `borda`, `mutual-information`, `variance`.
        device: where the sums lie.
        spill: file that takes every pass's probabilities, in 255ths, (pass, class, *space); None leaves them out.
    """

    def __init__(
        self,
        passes: int,
        classes: int,
        space: Sequence[int],
        wants: Collection[str],
        device: torch.device,
        spill: Path | None = None,
    ):
        self.passes, self.space, self.spill = passes, tuple(space), spill
        whole = (classes, *space)
        self.ballots = torch.zeros(
            whole, dtype=torch.uint8 if passes < 256 else torch.int16, device=device
        )
        self.sums = torch.zeros(whole, device=device)
        self.squares = torch.zeros(whole, device=device) if "variance" in wants else None
        self.entropies = (
            torch.zeros(self.space, device=device) if "mutual-information" in wants else None
        )
        kind = torch.int16 if passes * (classes - 1) < 2**15 else torch.int32
        self.points = torch.zeros(whole, dtype=kind, device=device) if "borda" in wants else None
        self.voxels = np.zeros((passes, classes), np.int64)  # of each pass's own label
        if spill is not None:
            _take_room(spill, passes * math.prod(whole))
            self._spilled = np.memmap(spill, np.uint8, "r+", shape=(passes, *whole))

    def add(self, number: int, where: ScanPart, probabilities: Tensor) -> None:
        """Count in what pass `number` says of a part of the scan, (class, *part)."""
        here = (slice(None), *where)
        for value, mine in enumerate(self.held(probabilities)):
            self.ballots[value][where] += mine
            self.voxels[number, value] += int(mine.sum())
        self.sums[here] += probabilities
        if self.squares is not None:
            self.squares[here].addcmul_(probabilities, probabilities)
        if self.entropies is not None:
            self.entropies[where] += self.entropy(probabilities)
        if self.points is not None:
            self.points[here] += vote_rules.borda_points(probabilities[None])
        if self.spill is not None:
            self._spilled[number][here] = (
                (probabilities * 255).round_().to(torch.uint8).cpu().numpy()
            )

    def held(self, probabilities: Tensor) -> Iterator[Tensor]:
        """Where a pass, alone, would say each class: masks (*part), in the order of the classes."""
        chosen = vote_rules.winner(probabilities)
        return (chosen == value for value in range(len(probabilities)))

    def entropy(self, probabilities: Tensor) -> Tensor:
        """(class, *space) -> (*space), in nats."""
        return entropy(probabilities)

    def spilled(self, value: int, start: int, stop: int) -> np.ndarray:
        """Probabilities of a class in 255ths, (pass, voxel) uint8, of the voxels from `start` to `stop`."""
        return np.array(self._spilled[:, value].reshape(self.passes, -1)[:, start:stop])

    def scores(self, rule: str, weights: Sequence[float], of: int) -> Tensor:
        """What each class got by a rule, (class, *space); the highest wins."""
        if rule == "borda":
            assert self.points is not None
            return self.points
        if rule == "weighted":
            return vote_rules.weighted(self.ballots, weights)
        if rule == "union":
            return vote_rules.union(self.ballots, of)
        return self.sums if rule == "mean" else vote_rules.majority(self.ballots)


class RegionVoteAccumulator(VoteAccumulator):
    """The same of a network trained on regions: wherever `Tally` says class, it is a region beside its complement.

    Args:
        members: of each region, those whose own class it holds, itself among them; see `regions.own_values`.
        how: as of `Tally`.
    """

    def __init__(self, members: Sequence[Sequence[int]], **how: Any):
        super().__init__(classes=len(members), **how)
        self.members = members

    def held(self, probabilities: Tensor) -> Iterator[Tensor]:
        """Where the label that a pass alone would write is of each region: above a half, later regions win."""
        # 0 where none was found, else the number of the last one, from 1
        last = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
        for number, probability in enumerate(probabilities, start=1):
            last[probability > 0.5] = number
        return (
            torch.isin(last, last.new_tensor([each + 1 for each in those]))
            for those in self.members
        )

    def entropy(self, probabilities: Tensor) -> Tensor:
        """(region, *space) -> (*space), in nats: the mean over the regions of each beside its complement."""
        return torch.stack([entropy(torch.stack([each, 1 - each])) for each in probabilities]).mean(
            0
        )

    def scores(self, rule: str, weights: Sequence[float], of: int) -> Tensor:
        """What each region got by a rule, (region, *space), 0 to 1; above a half it is found."""
        if rule == "mean":
            return self.sums / self.passes
        shares = self.ballots / self.passes
        if rule == "union":
            shares[of] = (shares[of] > 0).float()
        return shares


def _take_room(path: Path, size: int) -> None:
    """Make a file of so many bytes on the disk: a mapped file that finds it full later kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, 2**20):  # macOS has no such call
            file.write(bytes(min(2**20, size - start)))


def entropy(probabilities: Tensor) -> Tensor:
    """(class, *space) -> (*space), in nats."""
    found: Tensor = torch.special.entr(probabilities).sum(0)
    return found
