"""How outputs become a label: classes that exclude each other, or regions that overlap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfvox.uncertainty.vote_rules import VoteOptions, VoteRule, VoteTotals, winner


class Labelling(ABC):
    """What the outputs of a network mean."""

    @abstractmethod
    def outputs(self) -> int:
        """Number of outputs."""

    @abstractmethod
    def masks(self, probabilities: Tensor) -> Iterator[Tensor]:
        """Masks (*space) of what a pass alone would label, in the order of (output, *space)."""

    @abstractmethod
    def entropy(self, probabilities: Tensor) -> Tensor:
        """(output, *space) -> (*space), in nats."""

    @abstractmethod
    def scores(self, rule: VoteRule, totals: VoteTotals, options: VoteOptions) -> Tensor:
        """Scores (output, *space) of a vote."""


@dataclass(frozen=True)
class ClassLabelling(Labelling):
    """Classes that exclude each other: the most probable one is the label."""

    classes: int

    def outputs(self) -> int:
        """Number of classes."""
        return self.classes

    def masks(self, probabilities: Tensor) -> Iterator[Tensor]:
        """Where each class is the most probable one."""
        label = winner(probabilities)
        return (label == number for number in range(len(probabilities)))

    def entropy(self, probabilities: Tensor) -> Tensor:
        """(class, *space) -> (*space), in nats."""
        return entropy(probabilities)

    def scores(self, rule: VoteRule, totals: VoteTotals, options: VoteOptions) -> Tensor:
        """Scores (class, *space); the highest wins."""
        return rule.score(totals, options)


@dataclass(frozen=True)
class RegionLabelling(Labelling):
    """Regions that may overlap: each is present above a half, and later ones win.

    Args:
        members: for each region, the indices of the regions inside it, its own among them; see
            `regions.nested_regions`.
    """

    members: Sequence[Sequence[int]]

    def outputs(self) -> int:
        """Number of regions."""
        return len(self.members)

    def masks(self, probabilities: Tensor) -> Iterator[Tensor]:
        """Where the label that a pass alone would write belongs to each region."""
        # 0 where no region is present, else the number of the last one, from 1
        last = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
        for number, probability in enumerate(probabilities, start=1):
            last[probability > 0.5] = number
        return (
            torch.isin(last, last.new_tensor([index + 1 for index in indices]))
            for indices in self.members
        )

    def entropy(self, probabilities: Tensor) -> Tensor:
        """(region, *space) -> (*space), in nats: mean over each region with its complement."""
        entropies = [entropy(torch.stack([region, 1 - region])) for region in probabilities]
        return torch.stack(entropies).mean(0)

    def scores(self, rule: VoteRule, totals: VoteTotals, options: VoteOptions) -> Tensor:
        """Shares (region, *space), 0 to 1; a region is present above a half."""
        assert rule.score_regions is not None, "regions have no such vote"
        return rule.score_regions(totals, options)


def entropy(probabilities: Tensor) -> Tensor:
    """(class, *space) -> (*space), in nats."""
    summed: Tensor = torch.special.entr(probabilities).sum(0)
    return summed
