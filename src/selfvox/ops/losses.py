"""Losses as pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.ops.gather import (
    gather_views,
    is_distributed,
    mean_over_processes,
    sum_over_processes,
)

SMOOTH = 1e-5  # in numerator and denominator of soft Dice


class Retrieval(NamedTuple):
    """How well each view finds its partner; over the joint batch of all devices."""

    loss: Tensor  # scalar, with gradient
    accuracy: Tensor  # share of views that are more similar to their partner than to any other
    chance: Tensor  # that share for a guess
    loss_chance: Tensor  # the loss where all candidates are equally similar


def nt_xent(
    views: Tensor,
    temperature: float,
    scan: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_scan: Tensor | None = None,
) -> Retrieval:
    """NT-Xent over all views of all devices (Chen et al. 2020; paper B eq. 1).

    Args:
        views: (2N, width) embeddings; rows `i` and `i + N` are the two views of sample `i`.
            Normalised here.
        temperature: divides the cosine similarities.
        scan: (2N,) number of the scan each view comes from, the same on all devices; other samples
            of the same scan then leave the denominator, since they may look alike for good reason.
        negatives: (K, width) further embeddings; no view's partner is among them.
        negative_scan: (K,) the scan each of these is from, where `scan` is given.

    Returns:
        The mean over the 2N views of `-log softmax` at the partner, the accuracy, and what guesses
        reach of both.
    """
    views = F.normalize(views.float(), dim=1)
    if is_distributed():
        views, scan = gather_views(views, scan)
    count = len(views)
    candidates = views
    if negatives is not None:
        candidates = torch.cat([views, F.normalize(negatives.float(), dim=1)])
    # autocast would round the similarities to 8 bits, and the temperature magnifies that
    with torch.autocast(views.device.type, enabled=False):
        similarity = views @ candidates.T / temperature
    partner = torch.arange(count, device=views.device).roll(count // 2)
    ignored = torch.eye(count, len(candidates), dtype=torch.bool, device=views.device)
    if scan is not None:
        candidate_scan = scan if negative_scan is None else torch.cat([scan, negative_scan])
        ignored[:, : len(candidate_scan)] |= scan[:, None] == candidate_scan
        # a partner is of the same scan, but never ignored
        ignored.scatter_(1, partner[:, None], False)
    similarity = similarity.masked_fill(ignored, float("-inf"))
    accuracy = (similarity.argmax(1) == partner).float().mean()
    candidate_count = (~ignored).sum(1).float()
    return Retrieval(
        F.cross_entropy(similarity, partner),
        accuracy,
        chance=candidate_count.reciprocal().mean(),
        loss_chance=candidate_count.log().mean(),
    )


class Triplets(NamedTuple):
    """How far apart positives and negatives are."""

    loss: Tensor  # scalar, with gradient
    ordered: Tensor  # share of triplets with the positive nearer than the negative


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    *,
    squared: bool = True,
    counted: Tensor | None = None,
) -> Triplets:
    """Triplet loss (paper A eq. 3; Schroff et al. 2015).

    The mean of `max(0, D(anchor, positive) - D(anchor, negative) + margin)`.

    Args:
        anchor: (N, width).
        positive: (N, width), to be near.
        negative: (N, width), to be farther away, by `margin`.
        margin: in units of the distance.
        squared: D is the squared Euclidean distance, else the Euclidean.
        counted: (N,) booleans, which triplets the means are over; all by default. Over none, they
            are 0.
    """
    near = (anchor.float() - positive.float()).square().sum(1)
    far = (anchor.float() - negative.float()).square().sum(1)
    if not squared:
        # the square root has no slope at 0
        near = near.clamp(min=1e-12).sqrt()
        far = far.clamp(min=1e-12).sqrt()
    if counted is None:
        counted = torch.ones_like(near, dtype=torch.bool)
    # no division by 0, and no gradient, where none counts; of several devices, less than one may
    share = counted / mean_over_processes(counted.sum()).clamp(min=1e-6)
    loss = ((near - far + margin).clamp(min=0) * share).sum()
    return Triplets(loss, ((near < far) * share).sum())


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance of L2-normalised pairs (Wang and Isola 2020, alpha = 2).

    0 where the views are identical, 2 where they are as different as random directions.

    Args:
        first: (n, width).
        second: (n, width), row by row of the same thing.
    """
    difference = F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)
    return difference.square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """Uniformity of L2-normalised embeddings (Wang and Isola 2020, t = 2).

    The log of the mean of exp(-2 squared distance) over pairs.
    0 where all are the same; the lower, the more evenly they fill the sphere (about -4 in many
    dimensions).

    Args:
        embeddings: (n, width), n at least 2.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    # by products: pairwise distances are an operation that some devices lack
    with torch.autocast(unit.device.type, enabled=False):
        # rounding may leave a distance just below 0
        squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    pairs = len(unit) * (len(unit) - 1)
    return squared.mul(-2).exp().masked_fill(itself, 0).sum().div(pairs).log()


def soft_dice(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    smooth: float = SMOOTH,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Negative soft Dice, mean over classes, summed over batch and voxels (paper B eq. 2).

    Args:
        logits: (batch, class, *space); softmax is taken here.
        target: (batch, *space) integers.
        weights: (class,) of the mean; default: all the same.
        smooth: s of the equation.
        trusted: (batch, *space) booleans, or weights from 0 to 1: what each voxel counts in every
            sum; default: 1.
    """
    # float32: sums over a batch of volumes exceed the digits of bf16
    probability = logits.float().softmax(1)
    truth = F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    return _negative_dice(probability, truth, weights, smooth, trusted)


def soft_dice_regions(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    smooth: float = SMOOTH,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Negative soft Dice of regions that may overlap, mean over the regions.

    Args:
        logits: (batch, region, *space); each region's own sigmoid is taken here.
        target: (batch, region, *space) bool.
        weights: (region,) of the mean; default: all the same.
        smooth: as in `soft_dice`.
        trusted: as in `soft_dice`.
    """
    return _negative_dice(logits.float().sigmoid(), target.float(), weights, smooth, trusted)


def log_dice(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Negative logarithm of soft Dice, mean over the classes that the batch contains.

    Wong et al. 2018, eq. 2 with an exponent of 1. The slope of soft Dice vanishes with the
    probability of a class, so that a class which the others have pushed aside is never learnt; that
    of its logarithm does not. A class that is absent has no Dice to learn from: it is left out.

    Args:
        logits: (batch, class, *space); softmax is taken here.
        target: (batch, *space) integers.
        weights: (class,) of the mean; default: all the same.
        trusted: as in `soft_dice`.
    """
    probability = logits.float().softmax(1)
    truth = F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    return _negative_log_dice(probability, truth, weights, trusted)


def log_dice_regions(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Negative logarithm of soft Dice, mean over the regions that the batch contains.

    Args:
        logits: (batch, region, *space); each region's own sigmoid is taken here.
        target: (batch, region, *space) bool.
        weights: (region,) of the mean; default: all the same.
        trusted: as in `soft_dice`.
    """
    return _negative_log_dice(logits.float().sigmoid(), target.float(), weights, trusted)


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Soft Dice plus cross-entropy, equally weighted; as in `soft_dice`, the weights of Dice."""
    dice = soft_dice(logits, target, weights, trusted=trusted)
    if trusted is None:
        return dice + F.cross_entropy(logits.float(), target.long())
    of_voxels = F.cross_entropy(logits.float(), target.long(), reduction="none")
    return dice + _trusted_mean(of_voxels, trusted)


def dice_cross_entropy_regions(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Soft Dice of regions plus their binary cross-entropy; as in `soft_dice_regions`."""
    dice = soft_dice_regions(logits, target, weights, trusted=trusted)
    cross_entropy = F.binary_cross_entropy_with_logits
    if trusted is None:
        return dice + cross_entropy(logits.float(), target.float())
    of_voxels = cross_entropy(logits.float(), target.float(), reduction="none").mean(1)
    return dice + _trusted_mean(of_voxels, trusted)


def _trusted_mean(values: Tensor, trusted: Tensor) -> Tensor:
    """Mean of values (batch, *space), each weighed by its trust; 0 if nothing is trusted."""
    # no test for an empty mask, which would wait for the device; the sum above is then 0 too
    return (values * trusted).sum() / mean_over_processes(trusted.sum()).clamp(min=1e-5)


def _negative_dice(
    probability: Tensor,
    truth: Tensor,
    weights: Tensor | None,
    smooth: float,
    trusted: Tensor | None,
) -> Tensor:
    dice, _ = _dice(probability, truth, smooth, trusted)
    if weights is None:
        return -dice.mean()
    weights = weights.to(dice)
    return -(dice * weights).sum() / weights.sum()


def _negative_log_dice(
    probability: Tensor, truth: Tensor, weights: Tensor | None, trusted: Tensor | None
) -> Tensor:
    dice, size = _dice(probability, truth, SMOOTH, trusted)
    # no test for an absent class, which would wait for the device
    weights = (torch.ones_like(dice) if weights is None else weights.to(dice)) * (size > 0)
    return -(dice.log() * weights).sum() / weights.sum().clamp(min=1e-5)


def _dice(
    probability: Tensor, truth: Tensor, smooth: float, trusted: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Soft Dice and size of each class, of (batch, class, *space) in float32.

    Batch and voxels are summed before the ratio, those of all devices.
    """
    counted = truth
    if trusted is not None:
        probability = probability * trusted[:, None]
        counted = truth * trusted[:, None]
    batch_and_space = (0, *range(2, probability.ndim))
    sums = torch.stack(
        [
            (probability * truth).sum(batch_and_space),
            probability.sum(batch_and_space),
            counted.sum(batch_and_space),
        ]
    )
    overlap, predicted, size = sum_over_processes(sums)
    # smooth: a class that is absent and not predicted scores 1, not nan
    dice = (2 * overlap + smooth) / (predicted + size + smooth)
    return dice, size
