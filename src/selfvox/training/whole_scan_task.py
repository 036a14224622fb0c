"""What fine-tuning for one answer per scan has in common: a class, or a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import DIVISOR, choose_crop, choose_whole_size
from selfvox.data.sampling.whole_scans import resized_scan
from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.ops.outcome import Batch, Outcome
from selfvox.runs.device import Fabric
from selfvox.settings.verbs import Finetune
from selfvox.training.augment import STRENGTHS, Augmentation, augment_whole
from selfvox.training.downstream import DownstreamTask
from selfvox.training.dropout import TrainingDropout, dropout_rates
from selfvox.training.loop import Objective
from selfvox.training.mirror import axis_names, mirror_axes


class WholeScanTask(DownstreamTask):
    """What tasks on whole scans share: a size that all are resized to, and how they are varied."""

    def __init__(self, store: Store, settings: Finetune):
        self.linear = settings.head == "linear"
        self.dropout = dropout_rates(settings)
        names = axis_names(len(store.cases[0].shape))
        mirror = settings.mirror
        if mirror is None:
            # of most scans, a mirrored one has the same class
            mirror = ("none",) if settings.augment == "none" else ("all",)
        axes = mirror_axes(mirror, names)
        # at the rate of segmentation it learnt nothing on photographs of the retina
        self.learning_rate = settings.learning_rate or 1e-3
        self.augment = settings.augment or "light"
        self.augmentation = Augmentation(STRENGTHS[self.augment], axes)
        self.mirrored = tuple(names[axis] for axis in axes)

    def input_size(  # noqa: D102
        self,
        requested: Sequence[int] | None,
        cases: Sequence[StoredCase],
        divisor: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        if requested is not None:
            return choose_crop(requested, cases, divisor)
        return choose_whole_size(cases, divisor or (DIVISOR,) * len(cases[0].shape))

    @torch.no_grad()
    def predict(
        self,
        network: Classifier | Regressor,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        size: Sequence[int],
    ) -> Tensor:
        """Probabilities (case, class), or numbers (case, 1), of whole scans, on the CPU."""
        rows = []
        for case in cases:
            image = fabric.to_device(resized_scan(store, case, size)[None])
            with fabric.autocast():
                rows.append(network.probabilities(network(image)).cpu())
        return torch.cat(rows)


class WholeScanObjective(Objective):
    """A network of whole scans and the loss of its predictions."""

    def __init__(
        self,
        network: Classifier | Regressor,
        augmentation: Augmentation,
        frozen_steps: int,
        dropout: TrainingDropout,
    ):
        super().__init__()
        self.network = network
        self.augmentation = augmentation
        self.frozen_steps = frozen_steps
        self.dropout = dropout

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Augment, predict, compare."""
        image = augment_whole(batch["image"], batch["spacing"], self.augmentation, rng)
        is_frozen = step < self.frozen_steps
        # in training mode a batch norm would still update its statistics
        self.network.encoder.train(not is_frozen)
        with self.dropout.active():
            with torch.set_grad_enabled(not is_frozen):
                embedding = self.network.encoder.embed(image)
            logits = self.network.classify(embedding)
        return Outcome(self.network.loss(logits, batch["answer"]), {})
