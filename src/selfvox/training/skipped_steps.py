"""Steps without a finite loss or gradient, which are skipped: a run with too many of them ends."""

from __future__ import annotations

from pathlib import Path

import torch

from selfvox.errors import NumericalError
from selfvox.ops.outcome import Outcome
from selfvox.runs.progress import echo
from selfvox.training.optimizer_step import StepOutcome

# a run may skip so many steps in a row, and in all as many or one in a hundred; then it ends
MAX_SKIPPED_IN_A_ROW = 3
STEPS_PER_SKIPPED = 100


class SkippedSteps:
    """Reads which steps were skipped, of several at once, and counts them.

    Args:
        run: folder, for messages.
        steps: of the run.
        total: skipped before the run was resumed.
    """

    def __init__(self, run: Path, steps: int, total: int):
        self.run = run
        self.steps = steps
        self.total = total
        self._in_a_row = 0
        self._unread: list[StepOutcome] = []

    def add(self, outcome: StepOutcome) -> None:
        """Note a step, without waiting for the device."""
        self._unread.append(outcome)

    def read(self) -> list[list[Outcome]]:
        """The outcomes of all steps since the last call that were not skipped.

        Raises:
            NumericalError: too many were skipped.
        """
        steps = self._unread
        self._unread = []
        if not steps:
            return []
        flags = torch.stack([step.is_skipped for step in steps]).tolist()
        for step, is_skipped in zip(steps, flags, strict=True):
            self.count(step.step, is_skipped=bool(is_skipped))
        return [
            step.outcomes for step, is_skipped in zip(steps, flags, strict=True) if not is_skipped
        ]

    def count(self, step: int, *, is_skipped: bool) -> None:
        """Count one step.

        Raises:
            NumericalError: too many were skipped.
        """
        if not is_skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        limit = max(MAX_SKIPPED_IN_A_ROW, self.steps // STEPS_PER_SKIPPED)
        if self._in_a_row > MAX_SKIPPED_IN_A_ROW or self.total > limit:
            raise NumericalError(
                f"{self.run}: step {step} has no finite loss or gradient, and {self.total - 1} "
                "before it; lower --learning-rate, or use --precision fp32"
            )
        echo(f"step {step}: loss or gradient is not finite; the step was skipped")
