"""Votes of several passes on the class of a scan: decision, mean, spread and trust."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfvox.data.naming import natural_key
from selfvox.models.classifier import decide_class
from selfvox.runs.atomic_files import write_csv
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.labelling import entropy
from selfvox.uncertainty.review import INTERVAL, stability_in_words
from selfvox.uncertainty.review_table import COMPARISON_COLUMNS, comparison_cells, is_unlike
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteTotals, borda_points, winner

DIGITS = 6  # of shares in files
STABLE = 0.05  # error of the trust, a share of the passes, that hardly changes their order


@dataclass(frozen=True)
class ClassVotes:
    """What the passes over one scan decide on; sequences are in the order of the classes."""

    value: str  # of the class that they decide on: its grade, as tables write it
    probabilities: Sequence[float]  # mean over the passes
    low: Sequence[float]  # 5th percentile over the passes
    high: Sequence[float]  # 95th percentile over the passes
    votes: Sequence[int]  # passes that vote for each class
    entropy: float  # of the mean, in nats
    trust: float  # share of the passes that vote for the class
    name: str  # of the class

    def to_json(self, with_votes: bool) -> dict[str, Any]:
        """As `cases.jsonl` stores it; of a single pass, the class and the probabilities alone."""
        answer = {"class": self.value, "probabilities": _rounded(self.probabilities)}
        if not with_votes:
            return answer
        return {
            **answer,
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "votes": list(self.votes),
            "entropy": round(self.entropy, DIGITS),
            "trust": round(self.trust, DIGITS),
        }


def count_class_votes(
    passes: Tensor,
    ordinal: bool,
    classes: Sequence[str],
    settings: PassSettings,
    names: Sequence[str] | None = None,
) -> ClassVotes:
    """Let the passes over one scan decide on its class.

    A pass votes for the class that it would predict alone; Borda's count ranks the classes by their
    probability.

    Args:
        passes: (pass, class) probabilities.
        ordinal: whether the classes have an order.
        classes: their grades.
        settings: of the vote.
        names: of the classes; default: their grades.
    """
    mean = passes.mean(0)
    votes = decide_class(passes, ordinal)
    ballots = torch.bincount(votes, minlength=len(classes))
    rule = VOTE_RULES[settings.vote]
    if rule.averages_probabilities:
        number = int(decide_class(mean[None], ordinal))
    else:
        totals = VoteTotals(ballots, passes.sum(0), borda_points(passes), len(passes))
        number = int(winner(rule.score(totals, settings.options(classes))))
    low, high = np.percentile(passes.numpy(), INTERVAL, axis=0)
    return ClassVotes(
        value=classes[number],
        probabilities=mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        votes=ballots.tolist(),
        entropy=float(entropy(mean)),
        trust=float(ballots[number] / len(passes)),
        name=(names or classes)[number],
    )


def write_class_review(
    path: Path,
    answers: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    names: Sequence[str],
) -> None:
    """Write the cases as a table, the least trusted first, then those of larger entropy.

    Scans that are far from those of the training come before all others.

    Args:
        path: of the table.
        answers: by case id, as `ClassVotes.to_json` gives them.
        classes: their grades.
        names: of the classes; a column, where they are not the grades.
    """
    cases = sorted(
        answers,
        key=lambda case: (
            not is_unlike(answers[case]),
            answers[case]["trust"],
            -answers[case]["entropy"],
            natural_key(case),
        ),
    )
    rows = []
    for case in cases:
        answer = answers[case]
        number = classes.index(answer["class"])
        shares = [answer[key][number] for key in ("probabilities", "low", "high")]
        name = [] if names == classes else [names[number]]
        measures = [answer["trust"], answer["entropy"], answer["class"], *name, *shares]
        rows.append([case, *measures, *comparison_cells(answer)])
    header = ["case", "trust", "entropy", "class"]
    header += [] if names == classes else ["name"]
    header += ["probability", "spread low", "spread high"]
    write_csv(path, [*header, *COMPARISON_COLUMNS], rows)


def describe_stability(answers: Mapping[str, Mapping[str, Any]], passes: int) -> str:
    """How far the trust of a scan depends on the draw of the passes, and how many are enough.

    A share of independent passes has the standard error of a share. One vote for and one against
    are added, since a share of 1 would have none.

    Args:
        answers: by case id, as `ClassVotes.to_json` gives them.
        passes: of one network.
    """
    variances = []
    for answer in answers.values():
        share = (answer["trust"] * passes + 1) / (passes + 2)
        variances.append(share * (1 - share) / passes)
    error = 1.96 * math.sqrt(statistics.fmean(variances))
    return stability_in_words(error, passes, len(answers), STABLE)


def _rounded(shares: Sequence[float]) -> list[float]:
    return [round(share, DIGITS) for share in shares]
