"""Vote rules: what several predictions of one scan decide together, as one table.

A pass votes, in every voxel, for its most probable class. Each rule gives every class a score, and
the highest score wins. Ties go to the lower class index everywhere: within a pass, between the
ranks of Borda's count, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class VoteTotals(NamedTuple):
    """Sums over the passes that rules decide by; a "class" may be a region."""

    ballots: Tensor  # (class, *space): passes that vote for each class
    probabilities: Tensor  # (class, *space): summed over the passes
    points: Tensor | None  # (class, *space): Borda's points, if they were summed
    passes: int


class VoteOptions(NamedTuple):
    """Settings of single rules."""

    weights: Sequence[float] = ()  # of `weighted`: what a vote for each class counts
    union_index: int = 0  # of `union`: index of the class that wins wherever a pass votes for it


@dataclass(frozen=True)
class VoteRule:
    """How the passes decide together.

    Args:
        score: scores (class, *space), of which the highest wins.
        score_regions: shares (region, *space), 0 to 1, where a region is present above a half; None
            where regions, each present or absent, have no such vote.
        needs: names of the sums that an accumulator keeps for this rule alone.
        setting: the setting of `predict` that the rule needs.
        averages_probabilities: scores are mean probabilities, so that ordered classes are decided
            by their median.
    """

    score: Callable[[VoteTotals, VoteOptions], Tensor]
    score_regions: Callable[[VoteTotals, VoteOptions], Tensor] | None
    needs: tuple[str, ...] = ()
    setting: str | None = None
    averages_probabilities: bool = False


def borda_points(probabilities: Tensor) -> Tensor:
    """(pass, class, *space) -> (class, *space) int64: Borda's points of all passes (paper B 2.3).

    The most probable class of a pass gets as many points as there are other classes, the least
    probable none.
    """
    classes = probabilities.shape[1]
    points = []
    for number in range(classes):
        of_class = probabilities[:, number]
        # of equal probabilities the lower class index counts as the larger, hence >= and >
        wins = [of_class >= probabilities[:, rival] for rival in range(number + 1, classes)]
        wins += [of_class > probabilities[:, rival] for rival in range(number)]
        no_points = torch.zeros_like(of_class[0], dtype=torch.int64)
        points.append(sum((win.sum(0) for win in wins), start=no_points))
    return torch.stack(points)


def weighted(ballots: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores (class, *space): votes times the weight of the class (paper B: 1, 2, 2)."""
    per_class = torch.tensor(weights, dtype=torch.float32, device=ballots.device)
    return ballots * per_class.reshape(-1, *(1,) * (ballots.ndim - 1))


def union(ballots: Tensor, union_index: int) -> Tensor:
    """Scores (class, *space): one class gets all votes wherever any pass votes for it."""
    has_vote = ballots[union_index] > 0
    scores = torch.where(has_vote, 0, ballots)
    # as many as there are passes, which the type of the ballots can count
    all_votes = ballots.sum(0, dtype=ballots.dtype)
    scores[union_index] = torch.where(has_vote, all_votes, 0)
    return scores


def winner(scores: Tensor) -> Tensor:
    """(class, *space) -> (*space), uint8 or int16: the highest score, ties to the lowest."""
    # no argmax: its int64 takes more memory than all votes together
    best = scores[0].clone()
    dtype = torch.uint8 if len(scores) <= 256 else torch.int16
    label = torch.zeros(best.shape, dtype=dtype, device=scores.device)
    for number in range(1, len(scores)):
        label[scores[number] > best] = number
        torch.maximum(best, scores[number], out=best)
    return label


def _region_shares(totals: VoteTotals, options: VoteOptions) -> Tensor:
    """Share (region, *space) of the passes that vote for each region."""
    return totals.ballots / totals.passes


def _region_union(totals: VoteTotals, options: VoteOptions) -> Tensor:
    """Shares, where one region is present wherever any pass votes for it."""
    shares = _region_shares(totals, options)
    shares[options.union_index] = (shares[options.union_index] > 0).float()
    return shares


def _borda_totals(totals: VoteTotals, options: VoteOptions) -> Tensor:
    assert totals.points is not None, "Borda's points were not summed"
    return totals.points


# The one list of votes. `settings.verbs` names them a second time, as choices of an option;
# a test compares the two.
VOTE_RULES = {
    "majority": VoteRule(
        score=lambda totals, options: totals.ballots,
        score_regions=_region_shares,
    ),
    "weighted": VoteRule(
        score=lambda totals, options: weighted(totals.ballots, options.weights),
        score_regions=None,
        setting="vote_weights",
    ),
    "borda": VoteRule(
        score=_borda_totals,
        score_regions=None,
        needs=("points",),
    ),
    "union": VoteRule(
        score=lambda totals, options: union(totals.ballots, options.union_index),
        score_regions=_region_union,
        setting="union_class",
    ),
    "mean": VoteRule(
        # the sum decides as the mean does
        score=lambda totals, options: totals.probabilities,
        score_regions=lambda totals, options: totals.probabilities / totals.passes,
        averages_probabilities=True,
    ),
}
