"""Fine-tuning for classification: a class for every scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase, subject_grades
from selfvox.data.sampling.whole_scans import WholeScans
from selfvox.errors import DataError, UsageError
from selfvox.models.classifier import Classifier, decide_class
from selfvox.models.encoder import Encoder
from selfvox.ops.metrics import auc_per_class, confusion, kappa, nan_mean, recalls
from selfvox.runs.card import ClassifierCard
from selfvox.runs.device import Fabric
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import Validation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.mirror import axis_names, check_sides
from selfvox.training.whole_scan_task import WholeScanObjective, WholeScanTask


class Classification(WholeScanTask):
    """Classify whole scans, resized to the crop's edges, from the encoder's embedding of them."""

    scans = "scans with a class"

    def __init__(self, store: Store, settings: Finetune):
        super().__init__(store, settings)
        self.classes = sorted({case.grade for case in store.cases if case.grade is not None})
        if len(self.classes) < 2:
            raise DataError(
                f"{store.path}: all scans have the same grade, {self.classes[0]}; give scans of at "
                "least two grades"
            )
        declared = store.classes or {}
        self.names = tuple(declared.get(grade, str(grade)) for grade in self.classes)
        check_sides(self.augmentation.mirror, axis_names(len(store.cases[0].shape)), self.names)
        self.ordinal = settings.ordinal
        self.balance = settings.balance
        self.score = "kappa" if self.ordinal else "balanced_accuracy"

    def usable(self, case: StoredCase) -> bool:  # noqa: D102
        return case.grade is not None

    def untaught(self, training: Sequence[StoredCase]) -> list[str]:  # noqa: D102
        seen = {case.grade for case in training}
        pairs = zip(self.classes, self.names, strict=True)
        return [name for grade, name in pairs if grade not in seen]

    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:  # noqa: D102
        return subject_grades(cases)

    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> Classifier:  # noqa: D102
        return Classifier(encoder, len(self.classes), self.ordinal, self.linear)

    def card(self, **shared: Any) -> ClassifierCard:  # noqa: D102
        classes = tuple(map(str, self.classes))
        return ClassifierCard(
            **shared,
            classes=classes,
            names=None if self.names == classes else self.names,
            ordinal=self.ordinal,
            dropout=self.dropout,
            mirror=self.mirrored or None,
        )

    def objective(  # noqa: D102
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> WholeScanObjective:
        assert isinstance(network, Classifier)
        numbers = list(self._class_numbers(training).values())
        if len(set(numbers)) < 2:
            raise UsageError(
                f"labels: all {len(numbers)} training scans have the class "
                f"{self.names[numbers[0]]}, so that nothing can be learnt; use more of them"
            )
        # the untrained network predicts the frequencies that it will be trained on
        counts = [numbers.count(number) for number in range(len(self.classes))]
        # balanced batches show all classes equally often
        network.start_at([1] * len(counts) if self.balance else counts)
        dropout = TrainingDropout(network.encoder, network.head, self.dropout)
        return WholeScanObjective(network, self.augmentation, frozen_steps, dropout)

    def data(  # noqa: D102
        self, store: Store, training: Sequence[StoredCase], crop: Sequence[int], seed: int
    ) -> WholeScans:
        numbers = self._class_numbers(training)
        return WholeScans(store, training, crop, seed, numbers, balance=self.balance)

    def validate(  # noqa: D102
        self,
        network: nn.Module,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        crop: Sequence[int],
    ) -> Validation:
        assert isinstance(network, Classifier)
        probabilities = self.predict(network, fabric, store, cases, crop)
        numbers = self._class_numbers(cases)
        truth = np.array([numbers[case.id] for case in cases])
        predicted = decide_class(probabilities, self.ordinal).numpy()
        table = confusion(truth, predicted, len(self.classes))
        metrics = {
            "kappa": float(kappa(table)),
            "accuracy": float(np.trace(table) / table.sum()),
            "balanced_accuracy": nan_mean(recalls(table)),
            "auc": nan_mean(auc_per_class(truth, probabilities.numpy())),
        }
        defined = {name: value for name, value in metrics.items() if not math.isnan(value)}
        columns = zip(cases, truth, predicted, probabilities, strict=True)
        case_scores = tuple(
            {
                "case": case.id,
                "true class": self.names[true],
                "class": self.names[number],
                "probability": float(of_case[number]),
            }
            for case, true, number, of_case in columns
        )
        lost = self._lost(truth, predicted)
        return Validation(defined.get(self.score, -math.inf), defined, lost, case_scores)

    def _lost(self, truth: np.ndarray, predicted: np.ndarray) -> tuple[str, ...]:
        """The classes that are there and never predicted, where all scans get one class."""
        if len(np.unique(predicted)) > 1:
            return ()
        return tuple(self.names[number] for number in np.setdiff1d(truth, predicted))

    def describe_lost(self, lost: Sequence[str], scan: str) -> tuple[str, str]:  # noqa: D102
        return (
            f"every {scan} gets the same class, none {' or '.join(lost)}",
            "a smaller --learning-rate, a larger --batch, --balance, or more scans",
        )

    def _class_numbers(self, cases: Sequence[StoredCase]) -> dict[str, int]:
        """By case, the place of its grade among the classes."""
        return {case.id: self.classes.index(case.grade) for case in cases if case.grade is not None}
