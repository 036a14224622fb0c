"""Classes that a network does not learn: found and reported in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from selfvox.data.preparation.stored_case import StoredCase
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.training.downstream import DownstreamTask

# mean Dice of the other classes from which a class at 0 is not just slow
OTHERS_LEARN = 0.3
# share of the steps before which any class may still be at 0
EARLY = 1 / 3
# training scans that are segmented where none validates: a look costs as much as a validation
MOST_LOOKED_AT = 3


def find_lost(names: Sequence[str], dice: np.ndarray, contained: np.ndarray) -> tuple[str, ...]:
    """The classes with Dice 0 in every scan that has them, while the others are learnt.

    Args:
        names: of the classes or regions that are trained.
        dice: (scan, class).
        contained: (scan, class) booleans, whether the scan has the class. A scan without it has
            Dice 1 for a class that is never predicted.
    """
    means = [
        dice[contained[:, number], number].mean() if contained[:, number].any() else math.nan
        for number in range(len(names))
    ]
    learnt = [mean for mean in means if mean > 0]
    if not learnt or np.mean(learnt) <= OTHERS_LEARN:
        return ()
    return tuple(name for name, mean in zip(names, means, strict=True) if mean == 0)


def scans_to_look_at(training: Sequence[StoredCase]) -> list[StoredCase]:
    """A few training scans that have as many of the classes as possible, of equals the smaller."""
    chosen: list[StoredCase] = []
    unseen = {value for case in training for value in case.label_values}

    def worth(case: StoredCase) -> tuple[int, int]:
        return len(unseen.intersection(case.label_values)), -math.prod(case.shape)

    left = list(training)
    while left and len(chosen) < MOST_LOOKED_AT:
        best = max(left, key=worth)
        left.remove(best)
        chosen.append(best)
        unseen.difference_update(best.label_values)
    return chosen


class LostClasses:
    """Warns of each lost class once, and again at the end if the saved weights have lost it.

    Args:
        run: remembers what it warned of before it was resumed.
        steps: of the run.
        task: has the words for them.
        scan: what they are looked for in, such as "validation scan".
    """

    def __init__(self, run: Run, steps: int, task: DownstreamTask, scan: str):
        self.run = run
        self.steps = steps
        self.task = task
        self.scan = scan

    def is_late(self, step: int) -> bool:
        """Whether a class should no longer be at 0."""
        return step > EARLY * self.steps

    def check(self, step: int, lost: Sequence[str]) -> None:
        """Warn of the classes that are lost now."""
        # at the last step there is nothing left to change; `report` follows
        if not EARLY * self.steps < step < self.steps:
            return
        warned = self.run.record.get("lost_classes", [])
        new = [name for name in lost if name not in warned]
        if new:
            self.run.note(lost_classes=[*warned, *new])
            problem, options = self.task.describe_lost(new, self.scan)
            echo(f"warning: step {step}: {problem}; if it stays so, stop and train with {options}")

    def keep(self, lost: Sequence[str]) -> None:
        """Remember which classes the saved weights have lost."""
        if list(lost) != self.run.record.get("lost_classes_saved", []):
            problem = self.task.describe_lost(lost, self.scan)[0] if lost else ""
            self.run.note(lost_classes_saved=list(lost), lost_problem=problem)

    def report(self) -> None:
        """Repeat at the end which classes the saved weights have lost."""
        lost = self.run.record.get("lost_classes_saved", [])
        if lost:
            problem, options = self.task.describe_lost(lost, self.scan)
            echo(
                f"warning: the saved network has not learnt all: {problem}; train again with "
                f"{options}"
            )
