"""Which predictions to review first: volumes, agreement and entropy as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.data.naming import natural_key
from selfvox.ops.regions import Regions, region_class_indices
from selfvox.runs.atomic_files import write_csv
from selfvox.uncertainty.accumulator import VoteAccumulator

INTERVAL = (5, 95)  # percentiles over the passes
_MEASURES = ("volume", "low", "high", "agreement")  # of a class or region


def review_votes(
    accumulator: VoteAccumulator,
    label: Tensor,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    regions: Regions | None = None,
    trained_on_regions: bool = False,
) -> dict[str, Any]:
    """Volumes with their interval, agreement with the vote, and entropy, of one scan.

    Agreement is the Dice of all passes together with their vote, `2 sum |pass and vote| / sum
    (|pass| + |vote|)`; 1 where neither any pass nor the vote has the class. Trust is its mean over
    the classes above 0; where the network was trained on regions, over these, and classes are not
    measured.

    Args:
        accumulator: of all passes.
        label: their vote (*space), class indices.
        classes: name by class number.
        spacing_mm: edges of a voxel; the pixels of a picture, which have no known size, are counted
            instead.
        regions: sets of classes to measure too.
        trained_on_regions: whether the outputs are these regions.
    """
    is_volume = len(spacing_mm) == 3
    voxel = math.prod(spacing_mm) / 1000 if is_volume else 1.0  # mm³ to ml
    of_classes: list[dict[str, Any]] = []
    of_regions: list[dict[str, Any]] = []
    if not trained_on_regions:
        for number, value in enumerate(sorted(classes)):
            if value != 0:
                mask = _has_any(label, [number])
                of_classes.append({"class": value, **_measure(accumulator, [number], mask, voxel)})
    for place, (name, numbers) in enumerate(region_class_indices(regions, classes).items()):
        outputs = [place] if trained_on_regions else numbers
        mask = _has_any(label, numbers)
        of_regions.append({"region": name, **_measure(accumulator, outputs, mask, voxel)})
    return {
        "trust": statistics.fmean(entry["agreement"] for entry in of_classes or of_regions),
        "entropy": _mean_entropy(accumulator, label),
        "volumes_in": "ml" if is_volume else "px",
        "classes": of_classes,
        "regions": of_regions,
    }


def write_review(
    path: Path, reviews: Mapping[str, Mapping[str, Any]], classes: Mapping[int, str]
) -> None:
    """Write the reviews, by case id, as a table, the least trusted first."""
    first = next(iter(reviews.values()))
    unit = first["volumes_in"]
    names = [classes[entry["class"]] for entry in first["classes"]]
    names += [entry["region"] for entry in first["regions"]]
    header = ["case", "trust", "entropy"]
    for name in names:
        header += [f"{name} {unit}", f"{name} low", f"{name} high", f"{name} agreement"]
    rows = []
    for case in sorted(reviews, key=lambda case: (reviews[case]["trust"], natural_key(case))):
        review = reviews[case]
        row = [case, review["trust"], review["entropy"]]
        for entry in (*review["classes"], *review["regions"]):
            row += [entry[measure] for measure in _MEASURES]
        rows.append(row)
    write_csv(path, header, rows)


def _has_any(label: Tensor, numbers: Sequence[int]) -> Tensor:
    """Where the label has one of these class indices."""
    return torch.isin(label, label.new_tensor(numbers))


def _measure(
    accumulator: VoteAccumulator, outputs: Sequence[int], vote: Tensor, voxel: float
) -> dict[str, float]:
    """Volume, its interval over the passes, and agreement with the vote, of several outputs.

    Args:
        accumulator: of all passes.
        outputs: indices of classes, which exclude each other, or of one region.
        vote: (*space), where the vote has them.
        voxel: volume of a voxel.
    """
    sizes = accumulator.voxels[:, outputs].sum(1)
    voxels = int(vote.sum())
    # int64, since the sum of bytes would overflow
    common = sum(
        int(accumulator.ballots[output][vote].sum(dtype=torch.int64)) for output in outputs
    )
    total = int(sizes.sum()) + accumulator.passes * voxels
    low, high = np.percentile(sizes, INTERVAL)
    return {
        "volume": voxels * voxel,
        "low": float(low) * voxel,
        "high": float(high) * voxel,
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
