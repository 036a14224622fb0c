"""What the passes over a scan say of it: volumes, their spread, agreement and entropy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.ops.regions import Regions, region_class_indices
from selfvox.uncertainty.accumulator import VoteAccumulator

INTERVAL = (5, 95)  # percentiles over the passes


def review_votes(
    accumulator: VoteAccumulator,
    label: Tensor,
    written: np.ndarray,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    step: Sequence[float],
    regions: Regions | None = None,
    trained_on_regions: bool = False,
) -> dict[str, Any]:
    """Volumes with the spread of the passes, agreement with the vote, and entropy, of one scan.

    A volume is that of the written mask. `low` and `high` are the percentiles of the passes' own
    volumes, moved so that their median is this volume; `spread` is their standard deviation. They
    show how much the passes differ, not how far the truth may be away.

    Agreement is the Dice of all passes together with their vote, `2 sum |pass and vote| / sum
    (|pass| + |vote|)`; 1 where neither any pass nor the vote has the class. Trust is its mean over
    the classes above 0; where the network was trained on regions, over these, and classes are not
    measured.

    Args:
        accumulator: of all passes.
        label: their vote on the prepared grid (*space), class indices.
        written: the vote on the scan's own grid (*space), class numbers.
        classes: name by class number.
        spacing_mm: edges of a prepared voxel; the pixels of a picture, which have no known size,
            are counted instead.
        step: voxels of the scan per prepared voxel, along each axis.
        regions: sets of classes to measure too.
        trained_on_regions: whether the outputs are these regions.
    """
    voxel = written_voxel(spacing_mm, step)
    prepared_voxel = voxel * math.prod(step)
    counts = np.bincount(written.ravel(), minlength=max(classes) + 1)

    def measure(outputs: Sequence[int], numbers: Sequence[int]) -> dict[str, float]:
        """Of class numbers, which these outputs vote for."""
        present = [number for number in numbers if number in classes]
        indices = [sorted(classes).index(number) for number in present]
        volume = float(counts[present].sum()) * voxel
        return _measure(accumulator, outputs, _has_any(label, indices), volume, prepared_voxel)

    of_classes: list[dict[str, Any]] = []
    of_regions: list[dict[str, Any]] = []
    if not trained_on_regions:
        for index, value in enumerate(sorted(classes)):
            if value != 0:
                of_classes.append({"class": value, **measure([index], [value])})
    indices_of_regions = region_class_indices(regions, classes)
    for place, (name, numbers) in enumerate((regions or {}).items()):
        outputs = [place] if trained_on_regions else indices_of_regions[name]
        of_regions.append({"region": name, **measure(outputs, numbers)})
    return {
        "trust": statistics.fmean(entry["agreement"] for entry in of_classes or of_regions),
        "entropy": _mean_entropy(accumulator, label),
        "volumes_in": "ml" if len(spacing_mm) == 3 else "px",
        "classes": of_classes,
        "regions": of_regions,
    }


def written_voxel(spacing_mm: Sequence[float], step: Sequence[float]) -> float:
    """Volume in ml of a voxel of the scan; 1 for the pixels of a picture.

    Args:
        spacing_mm: edges of a prepared voxel.
        step: voxels of the scan per prepared voxel, along each axis.
    """
    scale = 1000 if len(spacing_mm) == 3 else 1  # mm³ to ml
    return math.prod(spacing_mm) / scale / math.prod(step)


def parts(review: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The measures of each class, and then of each region."""
    return [*review["classes"], *review["regions"]]


def part_names(review: Mapping[str, Any], classes: Mapping[int, str]) -> list[str]:
    """The name of each class and region, in the order of `parts`."""
    names = [classes[part["class"]] for part in review["classes"]]
    return names + [part["region"] for part in review["regions"]]


def describe_precision(reviews: Iterable[Mapping[str, Any]], passes: int) -> str | None:
    """How precise the mean of the volumes of the passes is, and that of four times as many.

    Passes are independent draws, so that the mean of their volumes has the standard error of a
    mean; 1.96 of it, relative to the volume, is the median over scans, classes and regions. None
    where no volume is above 0.
    """
    errors = [
        1.96 * part["spread"] / math.sqrt(passes) / part["volume"]
        for review in reviews
        for part in parts(review)
        # records of earlier versions have no spread
        if part["volume"] > 0 and "spread" in part
    ]
    if not errors:
        return None
    percent = 100 * statistics.median(errors)
    return (
        f"the mean of the volumes of {passes} passes is precise to ±{percent:.2g} % (chance of the "
        f"dropout alone, median); that of {4 * passes} would be to ±{percent / 2:.2g} %"
    )


def _has_any(label: Tensor, numbers: Sequence[int]) -> Tensor:
    """Where the label has one of these class indices."""
    return torch.isin(label, label.new_tensor(numbers))


def _measure(
    accumulator: VoteAccumulator,
    outputs: Sequence[int],
    vote: Tensor,
    volume: float,
    voxel: float,
) -> dict[str, float]:
    """Volume, spread of the passes, and agreement with the vote, of several outputs.

    Args:
        accumulator: of all passes.
        outputs: indices of classes, which exclude each other, or of one region.
        vote: (*space), where the vote has them.
        volume: of the written mask.
        voxel: volume of a prepared voxel.
    """
    sizes = accumulator.voxels[:, outputs].sum(1)
    voxels = int(vote.sum())
    # int64, since the sum of bytes would overflow
    common = sum(
        int(accumulator.ballots[output][vote].sum(dtype=torch.int64)) for output in outputs
    )
    total = int(sizes.sum()) + accumulator.passes * voxels
    low, high = (np.percentile(sizes, INTERVAL) - np.median(sizes)) * voxel
    return {
        "volume": volume,
        "low": max(0.0, volume + float(low)),
        "high": volume + float(high),
        # ddof=1: the passes are a sample of all sub-networks
        "spread": float(np.std(sizes, ddof=1)) * voxel,
        "agreement": 2 * common / total if total else 1.0,
    }


def _mean_entropy(accumulator: VoteAccumulator, label: Tensor) -> float | None:
    """Mean entropy of the mean probabilities over the labelled voxels, in nats, if any."""
    voxels = int((label > 0).sum())
    if not voxels:
        return None
    planes = []
    # plane by plane, since the mean of a whole scan takes as much memory as the sums
    for sums, mask in zip(accumulator.sums.movedim(1, 0), label > 0, strict=True):
        entropy = accumulator.labelling.entropy(sums / accumulator.passes)
        planes.append(float(entropy[mask].cpu().sum(dtype=torch.float64)))
    return sum(planes) / voxels
