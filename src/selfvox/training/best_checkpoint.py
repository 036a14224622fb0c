"""Validate during fine-tuning and keep the best weights."""

from __future__ import annotations

import json
import math
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import save_part
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import DownstreamTask
from selfvox.training.loop import TrainingPlan


def validation_interval(asked: int | None, steps: int) -> int:
    """Steps from one validation to the next."""
    return asked or max(1, steps // 5)


class BestCheckpoint:
    """Validates on whole scans every so often, and keeps the weights that the run is to end with."""

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        goal: DownstreamTask,
        network: nn.Module,
        card: dict[str, Any],
        store: Store,
        validation: list[StoredCase],
        settings: Finetune,
        how: TrainingPlan,
    ):
        self.run, self.fabric, self.goal, self.network, self.card = run, fabric, goal, network, card
        self.store, self.validation, self.how = store, validation, how
        self.best_only = settings.keep == "best" and bool(validation)
        self.name = f"validation_{goal.score}"
        self.step, self.score, self.told = 0, -math.inf, False
        if settings.resume and (run.path / "network" / "network.json").exists():
            before = json.loads((run.path / "network" / "network.json").read_text(encoding="utf-8"))
            self.step = before["step"]
            self.score = -math.inf if before[self.name] is None else before[self.name]

    @property
    def kept(self) -> str:
        """Which weights the run ended with."""
        which = "best by validation" if self.best_only else "last"
        score = (
            f", {self.goal.score.replace('_', ' ')} {self.score:.3f}"
            if math.isfinite(self.score)
            else ""
        )
        return f"{which}: step {self.step}{score}"

    def after_step(self, step: int) -> dict[str, float]:
        """Validate when it is time; what was measured."""
        if step % self.how.save_every and step != self.how.steps:
            return {}
        score, measured = self._validate() if self.validation else (-math.inf, {})
        if self.validation and not math.isfinite(score) and not self.told:
            self.told = True
            which = (
                "such steps are kept only where there is no other, the last of them"
                if self.best_only
                else "it is left out"
            )
            echo(
                f"step {step}: {self.goal.score.replace('_', ' ')} of the validation scans is not defined; {which}"
            )
        # of equal scores the later: few scans tie often, and what was trained for longer is surer of them
        if (score, step) >= (self.score, self.step) or not self.best_only:
            self.step, self.score = step, score
            found = {"step": step, self.name: score if math.isfinite(score) else None}
            save_part(self.run.path / "network", "network", self.network, {**self.card, **found})
        return measured

    def _validate(self) -> tuple[float, dict[str, float]]:
        self.network.eval()
        found = self.goal.validate(
            self.network, self.fabric, self.store, self.validation, self.card["crop"]
        )
        self.network.train()
        return found
