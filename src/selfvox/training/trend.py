"""Was a run long enough? The trend of its scores or its loss in the last fifth of the steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from selfvox.settings.verbs import Finetune, Pretrain

LAST = 0.8  # share of the steps before the last fifth
RISE = 0.01  # of a score between 0 and 1; less is within the noise of a few validation scans
DROP = 0.05  # of a score, from its best to its last
# of the loss: share of all that it fell by
FALL = 0.05

Lines = Sequence[Mapping[str, Any]]


def late_rise(lines: Lines, score: str, steps: int) -> float | None:
    """How much the best score rose in the last fifth of the steps; 0 where it did not.

    Args:
        lines: of `metrics.jsonl`.
        score: its name there.
        steps: of the run.

    Returns:
        None where the last fifth or the steps before it have no score.
    """
    early = [line[score] for line in lines if score in line and line["step"] <= LAST * steps]
    late = [line[score] for line in lines if score in line and line["step"] > LAST * steps]
    if not early or not late:
        return None
    rise = max(late) - max(early)
    return float(rise) if rise > RISE else 0.0


def final_drop(lines: Lines, score: str) -> tuple[float, int] | None:
    """How far the last score is below the best; None where the last is about as good.

    Args:
        lines: of `metrics.jsonl`.
        score: its name there.

    Returns:
        The drop, and the step of the best score.
    """
    scores = [(line[score], line["step"]) for line in lines if score in line]
    if not scores:
        return None
    best, step = max(scores)
    drop = best - scores[-1][0]
    return (float(drop), int(step)) if drop > DROP else None


def late_fall(lines: Lines, steps: int) -> float | None:
    """How much the loss fell from the fourth fifth of the steps to the last; 0 if it did not.

    A fall counts if it is more than two standard errors, and not small next to all of it.

    Returns:
        None where these fifths have too few values, or the first has none.
    """
    fifths: list[list[float]] = [[] for _ in range(5)]
    for line in lines:
        if "loss" in line:
            fifths[min(4, math.floor(5 * (line["step"] - 1) / steps))].append(line["loss"])
    first, *_, fourth, last = fifths
    if not first or len(fourth) < 2 or len(last) < 2:
        return None
    fall = statistics.fmean(fourth) - statistics.fmean(last)
    error = math.hypot(*(statistics.stdev(part) / math.sqrt(len(part)) for part in (fourth, last)))
    whole = statistics.fmean(first) - statistics.fmean(last)
    return fall if fall > max(2 * error, FALL * whole) else 0.0


def describe_scores(lines: Lines, score: str, settings: Finetune, steps: int) -> list[str]:
    """The advice where the score rose to the end, and where the last weights are not the best.

    Args:
        lines: of `metrics.jsonl`.
        score: its name there.
        settings: of the run.
        steps: of the run.
    """
    advice = []
    rise = late_rise(lines, score, steps)
    if rise:
        advice.append(
            f"validation was still rising, by {rise:.3f} in the last fifth of the steps: train "
            f"longer, such as {twice_as_long(settings, steps)}"
        )
    drop = final_drop(lines, score) if settings.keep == "last" else None
    if drop is not None:
        advice.append(
            f"the last weights are kept, and their validation score is {drop[0]:.3f} below that of "
            f"step {drop[1]}: look at curve.png; where this is more than noise, train with --steps "
            f"{drop[1]}, or with --keep best"
        )
    return advice


def describe_fall(lines: Lines, settings: Pretrain | Finetune, steps: int) -> str | None:
    """The advice to train longer, where the loss still fell in the last fifth of the steps.

    Args:
        lines: of `metrics.jsonl`.
        settings: of the run.
        steps: of the run.
    """
    fall = late_fall(lines, steps)
    if not fall:
        return None
    return (
        f"the loss was still falling, by {fall:.3g} in the last fifth of the steps: train longer, "
        f"such as {twice_as_long(settings, steps)}"
    )


def twice_as_long(settings: Pretrain | Finetune, steps: int) -> str:
    """The option, of the kind that was given, that trains twice as long: `--minutes 60`.

    Args:
        settings: of the run.
        steps: of the run.
    """
    for name in ("minutes", "epochs"):
        given = getattr(settings, name)
        if given is not None:
            return f"--{name} {2 * given:g}"
    return f"--steps {2 * steps}"
