"""What many passes over one scan say of its class: the vote, the mean with its interval, how unsure and how trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.data.naming import natural_key
from selfvox.models.classifier import decide_class
from selfvox.runs.atomic_files import write_csv
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import vote_rules
from selfvox.uncertainty.accumulator import entropy
from selfvox.uncertainty.review import INTERVAL


def measure_class_votes(
    passes: Tensor, ordinal: bool, names: Sequence[str], settings: Predict
) -> dict[str, Any]:
    """The class that the passes decide on, and what they say of it.

    A pass votes for the class that it would answer alone; Borda's count ranks the classes by their probability. Trust
    is the share of the passes that vote for the decided class.

    Args:
        passes: (pass, class) probabilities.
        ordinal: whether the classes have an order.
        names: of the classes.
        settings: say how they vote.
    """
    each, mean = decide_class(passes, ordinal), passes.mean(0)
    ballots = torch.bincount(each, minlength=len(names))
    if settings.vote == "mean":
        number = int(decide_class(mean[None], ordinal))
    else:
        number = int(vote_rules.winner(_scores(ballots, passes, names, settings)))
    low, high = np.percentile(passes.numpy(), INTERVAL, axis=0)
    return {
        "class": names[number],
        "probabilities": _short(mean.tolist()),
        "low": _short(low.tolist()),
        "high": _short(high.tolist()),
        "votes": ballots.tolist(),
        "entropy": round(float(entropy(mean)), 6),
        "trust": round(float(ballots[number] / len(passes)), 6),
    }


def write_review(
    path: Path, answers: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> None:
    """Write the cases as a table, the least trusted first; of equally trusted ones that of the larger entropy."""
    rows = []
    for case, one in sorted(
        answers.items(),
        key=lambda item: (item[1]["trust"], -item[1]["entropy"], natural_key(item[0])),
    ):
        at = names.index(one["class"])
        shares = [one[name][at] for name in ("probabilities", "low", "high")]
        rows.append([case, one["trust"], one["entropy"], one["class"], *shares])
    write_csv(path, ["case", "trust", "entropy", "class", "probability", "low", "high"], rows)


def _scores(ballots: Tensor, passes: Tensor, names: Sequence[str], settings: Predict) -> Tensor:
    """Scores (class,), of which the highest wins."""
    if settings.vote == "borda":
        return vote_rules.borda_points(passes)
    if settings.vote_weights is not None:
        return vote_rules.weighted(ballots, settings.vote_weights)
    if settings.union_class is not None:
        return vote_rules.union(ballots, names.index(settings.union_class))
    return vote_rules.majority(ballots)


def _short(shares: Sequence[float]) -> list[float]:
    return [round(share, 6) for share in shares]
