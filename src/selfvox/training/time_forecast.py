"""How long a training will take: predicted from its first steps, in time to shorten it."""

from __future__ import annotations

from selfvox.runs.progress import echo, format_seconds

# these allocate memory, load libraries, and compile the network where that is asked for
WARM_UP_STEPS = 3
TIMED_STEPS = 7  # more would hardly be more precise: other programs use the machine too
PATIENCE_S = 30.0  # fewer steps are timed where they take so long
SHORT_S = 60.0  # a shorter training needs no forecast


class TimeForecast:
    """Adds up the time of the first steps and prints once how long all others will take.

    Args:
        steps: of the run.
        remark: what the time does not include, such as validations; may be empty.
    """

    def __init__(self, steps: int, remark: str = ""):
        self.steps = steps
        self.remark = remark
        self._count = 0
        self._timed_s = 0.0
        self.is_done = False  # no step is timed any more

    def add(self, step: int, seconds: float) -> None:
        """Count one step.

        Args:
            step: number of steps taken, those before a run was resumed included.
            seconds: that this one took.
        """
        self._count += 1
        timed = self._count - WARM_UP_STEPS
        if self.is_done or timed <= 0:
            return
        self._timed_s += seconds
        if timed >= TIMED_STEPS or self._timed_s >= PATIENCE_S:
            self.is_done = True
            self._report(self._timed_s / timed, self.steps - step)

    def _report(self, step_s: float, left: int) -> None:
        left_s = left * step_s
        if left_s < SHORT_S:
            return
        remark = f", {self.remark}" if self.remark else ""
        minutes = max(1, round(left_s / 120))
        echo(
            f"a step takes about {step_s:.2g} s: {left} more take about {format_seconds(left_s)}"
            f"{remark}; shorter: --minutes {minutes}, or fewer --steps"
        )
