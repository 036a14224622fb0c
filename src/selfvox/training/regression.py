"""Fine-tuning for regression: a number for every scan, such as an age."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.whole_scans import WholeScans
from selfvox.errors import DataError
from selfvox.models.encoder import Encoder
from selfvox.models.regressor import Regressor
from selfvox.runs.card import RegressorCard
from selfvox.runs.device import Fabric
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import Validation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.whole_scan_task import WholeScanObjective, WholeScanTask


class Regression(WholeScanTask):
    """Predict a number of whole scans, resized to the crop's edges, from their embedding."""

    scans = "scans with a target"
    # 1 minus the mean absolute error, as a share of that of the median of the training targets
    score = "skill"

    def __init__(self, store: Store, settings: Finetune):
        super().__init__(store, settings)
        if len({case.target for case in store.cases if case.target is not None}) < 2:
            raise DataError(f"{store.path}: all scans have the same target; give different ones")

    def usable(self, case: StoredCase) -> bool:  # noqa: D102
        return case.target is not None

    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:  # noqa: D102
        return {}

    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> Regressor:  # noqa: D102
        return Regressor(encoder, self.linear)

    def card(self, **shared: Any) -> RegressorCard:  # noqa: D102
        return RegressorCard(
            **shared, predicts="target", dropout=self.dropout, mirror=self.mirrored or None
        )

    def objective(  # noqa: D102
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> WholeScanObjective:
        assert isinstance(network, Regressor)
        targets = list(_targets(training).values())
        if len(set(targets)) < 2:
            raise DataError(
                f"all {len(targets)} scans to train on have the target {targets[0]:g}; give more "
                "--labels"
            )
        network.start_at(targets)
        dropout = TrainingDropout(network.encoder, network.head, self.dropout)
        return WholeScanObjective(network, self.augmentation, frozen_steps, dropout)

    def data(  # noqa: D102
        self, store: Store, training: Sequence[StoredCase], crop: Sequence[int], seed: int
    ) -> WholeScans:
        return WholeScans(store, training, crop, seed, _targets(training))

    def validate(  # noqa: D102
        self,
        network: nn.Module,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        crop: Sequence[int],
    ) -> Validation:
        assert isinstance(network, Regressor)
        predicted = self.predict(network, fabric, store, cases, crop)[:, 0].double().numpy()
        targets = _targets(cases)
        truth = np.array([targets[case.id] for case in cases])
        error = float(np.abs(predicted - truth).mean())
        constant = float(np.abs(network.median.item() - truth).mean())
        metrics = {"mean_absolute_error": error, "error_of_a_constant": constant}
        rows = tuple(
            {"case": case.id, "true target": true, "target": number}
            for case, true, number in zip(cases, truth.tolist(), predicted.tolist(), strict=True)
        )
        if constant == 0:
            return Validation(-math.inf, metrics, cases=rows)
        skill = 1 - error / constant
        lost = () if skill > 0 else ("target",)
        return Validation(skill, {"skill": skill, **metrics}, lost, rows)

    def describe_lost(self, lost: Sequence[str], scan: str) -> tuple[str, str]:  # noqa: D102
        return (
            f"the {scan}s are predicted no better than by the median of the training targets",
            "more steps, more scans, or a pre-trained encoder",
        )


def _targets(cases: Sequence[StoredCase]) -> dict[str, float]:
    """By case."""
    return {case.id: case.target for case in cases if case.target is not None}
