"""What the runs of a study took, pre-training included, and how many times that of their twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfvox.studies.results import Result


def costs(group: Sequence[Result]) -> dict[str, Any]:
    """What a run took in the mean, and its encoder; the most memory of all runs."""
    known = [result.cost for result in group if result.cost is not None]
    columns = ("cost_unit", "cost_s", "pretrain_cost_s", "peak_memory_mib")
    # runs that the processor made cannot be averaged with those of a GPU
    if len(known) < len(group) or len({cost.unit for cost in known}) > 1:
        return dict.fromkeys(columns)
    pretrainings = [cost.pretraining_s for cost in known if cost.pretraining_s is not None]
    values = (
        known[0].unit,
        float(np.mean([cost.seconds for cost in known])),
        float(np.mean(pretrainings)) if len(pretrainings) == len(known) else None,
        max(cost.peak_memory_mib for cost in known),
    )
    return dict(zip(columns, values, strict=True))


def cost_ratio(group: Sequence[Result], twins: Sequence[Result]) -> float | None:
    """How many times as long as a twin a run took, with its encoder; None where not known."""
    if not twins:
        return None
    ours = costs(group)
    theirs = costs(twins)
    total_s = total_seconds(ours)
    twin_s = total_seconds(theirs)
    if ours["cost_unit"] != theirs["cost_unit"] or not total_s or not twin_s:
        return None
    return total_s / twin_s


def total_seconds(row: Mapping[str, Any]) -> float:
    """What a run and its pre-training took; 0 where that is not known."""
    if row.get("cost_s") is None or row.get("pretrain_cost_s") is None:
        return 0.0
    return float(row["cost_s"] + row["pretrain_cost_s"])
