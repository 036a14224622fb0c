"""What a check of the machine says: ok, a warning or a failure, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warn", "fail"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "warn", "fail")  # the worst last


@dataclass(frozen=True)
class Check:
    """One line of `doctor`."""

    about: str
    outcome: Outcome
    text: str  # what was measured or tried
    remedy: str = ""  # empty if all is well


def worst(checks: list[Check]) -> Outcome:
    """The worst outcome of all checks."""
    return max((check.outcome for check in checks), key=OUTCOMES.index, default="ok")


def gigabytes(count: float) -> str:
    """A number of bytes for people, such as `12 GB`."""
    return f"{count / 1e9:.1f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
