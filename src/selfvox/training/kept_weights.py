"""Validate during fine-tuning, and keep the last weights or the best."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.models.low_rank import merged
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.card import NetworkCard
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.runs.weights import read_network_card, save_part
from selfvox.training.downstream import DownstreamTask, Validation
from selfvox.training.lost_classes import LostClasses

# by default, at equal distances; and before the first of them, each at half the steps of the next:
# of 400 epochs at 5, 10, 20 and 40, since most is learnt there
REGULAR = 5
EARLY = 4
VALIDATIONS = REGULAR + EARLY
VALIDATION_TABLE = "validation.csv"  # next to the weights


def validation_interval(validate_every: int | None, steps: int) -> int:
    """Steps from one validation to the next; by default a fifth of the run."""
    return validate_every or max(1, steps // REGULAR)


def validation_steps(validate_every: int | None, steps: int) -> list[int]:
    """The steps that a validation follows: regular ones, the last, and by default early ones."""
    every = validation_interval(validate_every, steps)
    early = [] if validate_every else [every >> halvings for halvings in range(1, EARLY + 1)]
    return sorted({*early, *range(every, steps + 1, every), steps} - {0})


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Scores a network on whole scans that do not train it; there may be none.

    Where there are none, `looked_at` are training scans that show which classes are lost: their
    Dice is that of scans that the network has learnt by heart, and is no score.
    """

    task: DownstreamTask
    network: nn.Module
    fabric: Fabric
    store: Store
    cases: Sequence[StoredCase]
    crop: Sequence[int]
    looked_at: Sequence[StoredCase] = ()

    def measure(self) -> Validation:
        """The score and all metrics; without scans none is defined."""
        if not self.cases:
            return Validation(-math.inf, {})
        return self._validate(self.cases)

    def look(self) -> tuple[str, ...]:
        """The classes that are lost on the training scans that are looked at."""
        return self._validate(self.looked_at).lost if self.looked_at else ()

    def _validate(self, cases: Sequence[StoredCase]) -> Validation:
        self.network.eval()
        scores = self.task.validate(self.network, self.fabric, self.store, cases, self.crop)
        self.network.train()
        return scores


class KeptWeights:
    """Validates every so often, and saves the weights that the run ends with.

    Args:
        folder: where the network is saved.
        validator: scores it.
        card: saved with the weights, next to their step and score.
        lost_classes: warns of classes that are not learnt.
        validations: the steps that a validation follows.
        keep: the `last` weights, or the `best` by validation, where there are scans to validate on.
        resume: compare with the weights that the folder has already.
    """

    def __init__(
        self,
        folder: Path,
        validator: Validator,
        card: NetworkCard,
        lost_classes: LostClasses,
        *,
        validations: Collection[int],
        keep: str,
        resume: bool,
    ):
        self.folder = folder
        self.validator = validator
        self.card = card
        self.lost_classes = lost_classes
        self.validations = frozenset(validations)
        self.best_only = keep == "best" and bool(validator.cases)
        self.step = 0
        self.score = -math.inf
        self._warned = False
        file = folder / "network.json"
        if resume and file.exists():
            saved = read_network_card(folder)
            self.step = saved.step
            if saved.score is not None:
                self.score = saved.score

    @property
    def _score_label(self) -> str:
        return self.validator.task.score.replace("_", " ")

    @property
    def caption(self) -> str:
        """Which weights are saved: `best by validation: step 40, dice 0.812`."""
        rule = "best by validation" if self.best_only else "last"
        score = f", {self._score_label} {self.score:.3f}" if math.isfinite(self.score) else ""
        return f"{rule}: step {self.step}{score}"

    def after_step(self, step: int) -> dict[str, float]:
        """Validate when it is time; return the metrics."""
        if step not in self.validations:
            return {}
        score, metrics, lost, cases = self.validator.measure()
        if not self.validator.cases:
            lost = self.validator.look() if self.lost_classes.is_late(step) else ()
        elif not math.isfinite(score):
            self._warn_undefined(step)
        # of equal scores the later one: with few scans ties are common, and the weights of a later
        # step were trained for longer
        if (score, step) >= (self.score, self.step) or not self.best_only:
            self._save(step, score)
            self._write_cases(step, cases)
            self.lost_classes.keep(lost)
        self.lost_classes.check(step, lost)
        return metrics

    def _save(self, step: int, score: float) -> None:
        self.step = step
        self.score = score
        # JSON has no infinity
        saved_score = score if math.isfinite(score) else None
        card = replace(self.card, step=step, score=saved_score)
        save_part(self.folder, "network", merged(self.validator.network), card.to_json())

    def _write_cases(self, step: int, cases: Sequence[Mapping[str, Any]]) -> None:
        """The scores of each scan by the saved weights; a killed run may leave those of others."""
        if cases:
            rows = ([step, *case.values()] for case in cases)
            write_csv(self.folder / VALIDATION_TABLE, ["step", *cases[0]], rows)

    def _warn_undefined(self, step: int) -> None:
        if self._warned:
            return
        self._warned = True
        consequence = "its entry is left out"
        if self.best_only:
            consequence = "such steps are kept only if no step has a score, the last one of them"
        echo(
            f"step {step}: {self._score_label} of the validation scans is not defined; "
            f"{consequence}"
        )
