"""What segmentation minimises: the loss of a segmenter on augmented crops and their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfvox.models.segmenter import Segmenter
from selfvox.ops import losses
from selfvox.ops.outcome import Batch, Outcome
from selfvox.training.augment import Augmentation, augment
from selfvox.training.dropout import TrainingDropout
from selfvox.training.loop import Objective

LOSS_LABELS = {
    "dice": "loss (-Dice)",
    "log-dice": "loss (-log Dice)",
    "dice+ce": "loss (cross-entropy - Dice)",
}
# by the setting `loss`, and whether the outputs are regions
LOSSES = {
    ("dice", False): losses.soft_dice,
    ("log-dice", False): losses.log_dice,
    ("dice+ce", False): losses.dice_cross_entropy,
    ("dice", True): losses.soft_dice_regions,
    ("log-dice", True): losses.log_dice_regions,
    ("dice+ce", True): losses.dice_cross_entropy_regions,
}


class SegmentationObjective(Objective):
    """A segmenter and the loss of its labels.

    Args:
        network: to train.
        values: label values in the order of the network's outputs.
        loss: `dice`, `log-dice` or `dice+ce`.
        augmentation: how samples are varied.
        frozen_steps: the encoder is frozen for so many steps.
        dropout: in the encoder and the decoder.
        membership: (region, label value) booleans, where the outputs are regions.
        class_weights: one for each output, of its Dice; default: all the same.
        ignored: label value of voxels that the loss leaves out; None: there are none.
    """

    def __init__(
        self,
        network: Segmenter,
        values: Sequence[int],
        loss: str,
        augmentation: Augmentation,
        frozen_steps: int,
        dropout: TrainingDropout,
        membership: np.ndarray | None = None,
        class_weights: Sequence[float] | None = None,
        ignored: int | None = None,
    ):
        super().__init__()
        self.network = network
        self.augmentation = augmentation
        self.frozen_steps = frozen_steps
        self.dropout = dropout
        # on the device of the network, and not saved with its weights
        self.values: Tensor
        self.membership: Tensor | None
        self.class_weights: Tensor | None
        constants = {
            "values": torch.tensor(values),
            "membership": None if membership is None else torch.from_numpy(membership),
            "class_weights": None if class_weights is None else torch.tensor(class_weights),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        # soft Dice is minimised with a minus sign, so the loss may be negative
        self.loss_label = LOSS_LABELS[loss]
        self.loss = LOSSES[loss, membership is not None]
        self.ignored = ignored

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Augment, segment, compare."""
        image, label = augment(
            batch["image"], batch["label"], batch["spacing"], self.augmentation, rng
        )
        is_frozen = step < self.frozen_steps
        # in training mode a batch norm would still update its statistics
        self.network.encoder.train(not is_frozen)
        with self.dropout.active():
            with torch.set_grad_enabled(not is_frozen):
                maps = self.network.encoder(image)
            logits = self.network.decode(maps, image.shape[2:])
        label = label.long()
        trusted = None
        if self.ignored is not None:
            is_ignored = label == self.ignored
            trusted = ~is_ignored
            # any class will do: it does not count
            label = label.masked_fill(is_ignored, 0)
        loss = self.loss(logits, self._target(label), self.class_weights, trusted=trusted)
        return Outcome(loss, {})

    def _target(self, label: Tensor) -> Tensor:
        """Output numbers (batch, *space), or region masks (batch, region, *space)."""
        if self.membership is None:
            return torch.searchsorted(self.values, label)
        return self.membership[:, label].movedim(0, 1)
