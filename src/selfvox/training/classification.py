"""Fine-tuning for classification: a class for every scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from selfvox.data.preparation.store import Store, StoredCase, subject_grades
from selfvox.data.sampling.whole_scans import WholeScans, resized_scan
from selfvox.errors import DataError, UsageError
from selfvox.models.classifier import Classifier, decide_class
from selfvox.models.encoder import Encoder
from selfvox.ops.metrics import auc_per_class, confusion, kappa, nan_mean, recalls
from selfvox.ops.outcome import Batch, Outcome
from selfvox.settings.verbs import Finetune
from selfvox.training.augment import augment_whole
from selfvox.training.downstream import DownstreamTask
from selfvox.training.loop import Objective


class Classification(DownstreamTask):
    """Whole scans resized to the crop's edges, and two layers upon the encoder's embedding of them."""

    scans = "scans with a class"

    def __init__(self, store: Store, settings: Finetune):
        for name, usual in (
            ("slices", None),
            ("regions", None),
            ("train_on", "classes"),
            ("loss", "dice"),
        ):
            if getattr(settings, name) != usual:
                option = name.replace("_", "-")
                raise UsageError(
                    f"{name}: is of segmentation, but {store.path} holds grades; leave --{option} out"
                )
        self.classes = sorted({case.grade for case in store.cases if case.grade is not None})
        if len(self.classes) < 2:
            raise DataError(
                f"{store.path}: all scans have one grade, {self.classes[0]}; give scans of two at least"
            )
        self.ordinal, self.balance, self.linear = (
            settings.ordinal,
            settings.balance,
            settings.head == "linear",
        )
        self.score = "kappa" if self.ordinal else "balanced_accuracy"

    def usable(self, case: StoredCase) -> bool:  # noqa: D102
        return case.grade is not None

    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:  # noqa: D102
        return subject_grades(cases)

    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> Classifier:  # noqa: D102
        return Classifier(encoder, len(self.classes), self.ordinal, self.linear)

    def card(self) -> dict[str, Any]:  # noqa: D102
        return {"classes": [str(value) for value in self.classes], "ordinal": self.ordinal}

    def objective(  # noqa: D102
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> ClassificationObjective:
        assert isinstance(network, Classifier)
        answers = list(self._answers(training).values())
        network.start_at(
            [1 if self.balance else answers.count(number) for number in range(len(self.classes))]
        )
        return ClassificationObjective(network, frozen_steps)

    def data(  # noqa: D102
        self, store: Store, training: Sequence[StoredCase], crop: Sequence[int], seed: int
    ) -> WholeScans:
        return WholeScans(
            store, training, crop, seed, self._answers(training), balance=self.balance
        )

    @torch.no_grad()
    def validate(  # noqa: D102
        self,
        network: nn.Module,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        crop: Sequence[int],
    ) -> tuple[float, dict[str, float]]:
        assert isinstance(network, Classifier)
        found = []
        for case in cases:
            image = fabric.to_device(resized_scan(store, case, crop)[None])
            with fabric.autocast():
                found.append(network.probabilities(network(image)).cpu())
        probabilities, answers = torch.cat(found), self._answers(cases)
        truth = np.array([answers[case.id] for case in cases])
        table = confusion(
            truth, decide_class(probabilities, self.ordinal).numpy(), len(self.classes)
        )
        measured = {
            "kappa": float(kappa(table)),
            "accuracy": float(np.trace(table) / table.sum()),
            "balanced_accuracy": nan_mean(recalls(table)),
            "auc": nan_mean(auc_per_class(truth, probabilities.numpy())),
        }
        known = {name: value for name, value in measured.items() if not math.isnan(value)}
        return known.get(self.score, -math.inf), known

    def _answers(self, cases: Sequence[StoredCase]) -> dict[str, int]:
        return {case.id: self.classes.index(case.grade) for case in cases if case.grade is not None}


class ClassificationObjective(Objective):
    """A classifier and the loss of its answers."""

    def __init__(self, network: Classifier, frozen_steps: int):
        super().__init__()
        self.network, self.frozen_steps = network, frozen_steps

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Augment, classify, compare."""
        image = augment_whole(batch["image"], batch["spacing"], rng)
        frozen = step < self.frozen_steps
        # a frozen encoder's normalisation stands still too
        self.network.encoder.train(not frozen)
        with torch.set_grad_enabled(not frozen):
            embedding = self.network.encoder.embed(image)
        return Outcome(self.network.loss(self.network.answer(embedding), batch["answer"]), {})
