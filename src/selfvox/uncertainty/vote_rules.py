"""What many predictions of one scan decide together: votes over passes, as pure functions.

A pass votes, in every voxel, for its most probable class. Each rule gives every class a score, and the highest score
wins. Ties go to the lower class index everywhere: within a pass, between the ranks of Borda's count, and at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count_ballots(probabilities: Tensor) -> Tensor:
    """(pass, class, *space) -> (class, *space) int64: how many passes hold each class for the most probable one."""
    chosen = probabilities.argmax(1)
    return torch.stack([(chosen == number).sum(0) for number in range(probabilities.shape[1])])


def borda_points(probabilities: Tensor) -> Tensor:
    """(pass, class, *space) -> (class, *space) int64: Borda's points summed over the passes (paper B 2.3).

    The most probable class of a pass gets as many points as there are other classes, the least probable none.
    """
    classes = probabilities.shape[1]
    found = []
    for one in range(classes):
        mine = probabilities[:, one]
        beaten = [mine >= probabilities[:, other] for other in range(one + 1, classes)]
        beaten += [mine > probabilities[:, other] for other in range(one)]
        found.append(
            sum(
                (each.sum(0) for each in beaten), start=torch.zeros_like(mine[0], dtype=torch.int64)
            )
        )
    return torch.stack(found)


def majority(ballots: Tensor) -> Tensor:
    """Scores (class, *space): the number of votes."""
    return ballots


def weighted(ballots: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores (class, *space): the number of votes times the class's weight (paper B: 1, 2, 2)."""
    shape = (-1, *(1,) * (ballots.ndim - 1))
    return ballots * torch.tensor(weights, dtype=torch.float32, device=ballots.device).reshape(
        shape
    )


def union(ballots: Tensor, of: int) -> Tensor:
    """Scores (class, *space): class `of` gets every vote where any pass votes for it; elsewhere they stay."""
    anywhere = ballots[of] > 0
    scores = torch.where(anywhere, 0, ballots)
    scores[of] = torch.where(anywhere, ballots.sum(0, dtype=ballots.dtype), 0)
    return scores


def winner(scores: Tensor) -> Tensor:
    """(class, *space) -> class indices (*space), uint8 or int16: the highest score, of equal ones the lowest index."""
    # no argmax: its int64 takes more memory than all votes together
    best = scores[0].clone()
    label = torch.zeros(
        best.shape, dtype=torch.uint8 if len(scores) <= 256 else torch.int16, device=scores.device
    )
    for number in range(1, len(scores)):
        label[scores[number] > best] = number
        torch.maximum(best, scores[number], out=best)
    return label
