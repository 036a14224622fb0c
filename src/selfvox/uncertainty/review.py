"""Which predictions to look at first: what the passes over each scan say about it, as a table."""

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
from selfvox.uncertainty.accumulator import RegionVoteAccumulator, VoteAccumulator

INTERVAL = (5, 95)  # percentiles over the passes


def measure_review(
    tally: VoteAccumulator,
    label: Tensor,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    regions: Regions | None = None,
) -> dict[str, Any]:
    """What the passes over one scan say: volumes with their interval, how far they agree, how unsure they are.

    Agreement is the Dice of all passes together with their vote, `2 sum |pass and vote| / sum (|pass| + |vote|)`; 1
    where neither any pass nor the vote holds the class. Trust is its mean over the classes above 0; where the network
    was trained on regions, over these, and nothing is said of classes.

    Args:
        tally: of all passes.
        label: their vote (*space), class indices.
        classes: name by label value.
        spacing_mm: edges of a voxel; of a picture, whose pixels have no known size, they are counted instead.
        regions: sets of classes to measure too.
    """
    size = math.prod(spacing_mm) / 1000 if len(spacing_mm) == 3 else 1.0
    trained_on_regions = isinstance(tally, RegionVoteAccumulator)
    of_classes: list[dict[str, Any]] = [
        {"class": value, **_measured(tally, [number], _within(label, [number]), size)}
        for number, value in enumerate(sorted(classes))
        if value != 0 and not trained_on_regions
    ]
    of_regions: list[dict[str, Any]] = [
        {
            "region": name,
            **_measured(
                tally, [place] if trained_on_regions else numbers, _within(label, numbers), size
            ),
        }
        for place, (name, numbers) in enumerate(region_class_indices(regions, classes).items())
    ]
    unsure = [
        float(tally.entropy(mean / tally.passes)[mask].cpu().sum(dtype=torch.float64))
        for mean, mask in zip(tally.sums.movedim(1, 0), label > 0, strict=True)
    ]
    voxels = int((label > 0).sum())
    return {
        "trust": statistics.fmean(each["agreement"] for each in of_classes or of_regions),
        "entropy": sum(unsure) / voxels if voxels else None,
        "volumes_in": "ml" if len(spacing_mm) == 3 else "px",
        "classes": of_classes,
        "regions": of_regions,
    }


def _within(label: Tensor, numbers: Sequence[int]) -> Tensor:
    """Where the label has one of these class indices."""
    return torch.isin(label, label.new_tensor(numbers))


def _measured(
    tally: VoteAccumulator, numbers: Sequence[int], voted: Tensor, size: float
) -> dict[str, float]:
    """Volume, its interval, and agreement with the vote, of what the tally counts under `numbers` taken together."""
    sizes = tally.voxels[:, numbers].sum(1)
    voxels = int(voted.sum())
    together = sum(int(tally.ballots[number][voted].sum(dtype=torch.int64)) for number in numbers)
    total = int(sizes.sum()) + tally.passes * voxels
    low, high = np.percentile(sizes, INTERVAL)
    return {
        "volume": voxels * size,
        "low": float(low) * size,
        "high": float(high) * size,
        "agreement": 2 * together / total if total else 1.0,
    }


def write_review(
    path: Path, measured: Mapping[str, Mapping[str, Any]], classes: Mapping[int, str]
) -> None:
    """Write what was measured of each case as a table, the least trusted first."""
    first = next(iter(measured.values()))
    unit = first["volumes_in"]
    header = ["case", "trust", "entropy"]
    for name in [
        *(classes[each["class"]] for each in first["classes"]),
        *(each["region"] for each in first["regions"]),
    ]:
        header += [f"{name} {unit}", f"{name} low", f"{name} high", f"{name} agreement"]
    rows = []
    for case, each in sorted(
        measured.items(), key=lambda one: (one[1]["trust"], natural_key(one[0]))
    ):
        row = [case, each["trust"], each["entropy"]]
        for one in (*each["classes"], *each["regions"]):
            row += [one[name] for name in ("volume", "low", "high", "agreement")]
        rows.append(row)
    write_csv(path, header, rows)
