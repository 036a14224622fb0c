"""Losses as pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from selfvox.ops.gather import _joint, _many_devices


class Retrieval(NamedTuple):
    """How well each view finds its partner; over the joint batch of all devices."""

    loss: Tensor  # scalar, with gradient
    accuracy: Tensor  # share of views whose most similar other view is the partner
    chance: Tensor  # that share for a guess


def nt_xent(
    views: Tensor,
    temperature: float,
    same_scan: Tensor | None = None,
    others: Tensor | None = None,
    scan_of_others: Tensor | None = None,
) -> Retrieval:
    """NT-Xent over all views of all devices (Chen et al. 2020; paper B eq. 1), and its top-1 retrieval accuracy.

    Args:
        views: (2N, width) embeddings; rows `i` and `i + N` are the two views of sample `i`. Normalised here.
        temperature: divides the cosine similarities.
        same_scan: (2N,) number of the scan each view comes from, the same on all devices; other samples of a view's own
            scan then leave the denominator, since they may look alike for good reason.
        others: (K, width) further embeddings to tell every view from; no view's partner is among them.
        scan_of_others: (K,) the scan each of these is from, where `same_scan` is given.

    Returns:
        The mean over the 2N views of `-log softmax` at the partner, the accuracy and its chance.
    """
    views = F.normalize(views.float(), dim=1)
    if _many_devices():
        views, same_scan = _joint(views, same_scan)
    count = len(views)
    candidates = views if others is None else torch.cat([views, F.normalize(others.float(), dim=1)])
    # autocast would round the similarities to 8 bits, and the temperature magnifies that
    with torch.autocast(views.device.type, enabled=False):
        similarity = views @ candidates.T / temperature
    partner = torch.arange(count, device=views.device).roll(count // 2)
    ignored = torch.eye(count, len(candidates), dtype=torch.bool, device=views.device)
    if same_scan is not None:
        scan = same_scan if scan_of_others is None else torch.cat([same_scan, scan_of_others])
        ignored[:, : len(scan)] |= same_scan[:, None] == scan
        ignored.scatter_(1, partner[:, None], False)
    similarity = similarity.masked_fill(ignored, float("-inf"))
    accuracy = (similarity.argmax(1) == partner).float().mean()
    chance = (~ignored).sum(1).float().reciprocal().mean()
    return Retrieval(F.cross_entropy(similarity, partner), accuracy, chance)


class Triplets(NamedTuple):
    """How far apart positives and negatives are."""

    loss: Tensor  # scalar, with gradient
    ordered: Tensor  # share of triplets whose positive is nearer than their negative


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    *,
    squared: bool = True,
    counted: Tensor | None = None,
) -> Triplets:
    """Mean of `max(0, D(anchor, positive) - D(anchor, negative) + margin)` (paper A eq. 3; Schroff et al. 2015).

    Args:
        anchor: (N, width); positive and negative alike.
        positive: to be near.
        negative: to be farther away, by `margin`.
        margin: in units of the distance.
        squared: D is the squared Euclidean distance, else the Euclidean.
        counted: (N,) booleans, which triplets the means are over; all by default. Over none, they are 0.
    """
    near, far = ((anchor.float() - other.float()).square().sum(1) for other in (positive, negative))
    if not squared:
        # the square root has no slope at 0
        near, far = near.clamp(min=1e-12).sqrt(), far.clamp(min=1e-12).sqrt()
    counted = torch.ones_like(near, dtype=torch.bool) if counted is None else counted
    share = counted / counted.sum().clamp(min=1)
    return Triplets(
        ((near - far + margin).clamp(min=0) * share).sum(), ((near < far) * share).sum()
    )


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance between L2-normalised embeddings of two views of one thing (Wang and Isola 2020, alpha 2).

    0 where the views cannot be told apart, 2 where they are as unlike as random directions.

    Args:
        first: (n, width).
        second: (n, width), row by row of the same thing.
    """
    first, second = (F.normalize(each.float(), dim=1) for each in (first, second))
    return (first - second).square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """Log of the mean of exp(-2 squared distance) over pairs of L2-normalised embeddings (Wang and Isola 2020, t 2).

    0 where all are the same; the lower, the more evenly they fill the sphere (about -4 in many dimensions).

    Args:
        embeddings: (n, width), n at least 2.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    # by products: pairwise distances are an operation that some devices lack
    with torch.autocast(unit.device.type, enabled=False):
        squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    alone = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return squared.mul(-2).exp().masked_fill(alone, 0).sum().div(len(unit) * (len(unit) - 1)).log()


def soft_dice(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """Negative soft Dice, mean over classes, summed over batch and voxels (paper B eq. 2).

    Args:
        logits: (batch, class, *space); softmax is taken here.
        target: (batch, *space) integers.
        smooth: s of the equation.
    """
    probability = logits.float().softmax(1)
    truth = F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    space = (0, *range(2, logits.ndim))
    overlap = (probability * truth).sum(space)
    return -((2 * overlap + smooth) / (probability.sum(space) + truth.sum(space) + smooth)).mean()


def soft_dice_regions(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """Negative soft Dice of regions that may overlap, mean over regions, summed over batch and voxels.

    Args:
        logits: (batch, region, *space); each region's own sigmoid is taken here.
        target: (batch, region, *space) bool.
        smooth: as in `soft_dice`.
    """
    probability, truth = logits.float().sigmoid(), target.float()
    space = (0, *range(2, logits.ndim))
    overlap = (probability * truth).sum(space)
    return -((2 * overlap + smooth) / (probability.sum(space) + truth.sum(space) + smooth)).mean()


def dice_cross_entropy_regions(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of regions plus each one's binary cross-entropy, equally weighted."""
    return soft_dice_regions(logits, target) + F.binary_cross_entropy_with_logits(
        logits.float(), target.float()
    )


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy, equally weighted."""
    return soft_dice(logits, target) + F.cross_entropy(logits.float(), target.long())
