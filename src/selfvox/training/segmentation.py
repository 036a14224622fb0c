"""Fine-tuning for segmentation: a class for every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crop_size import distinct_spacings, in_plane_cases, slice_axis
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, UsageError
from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import segment_scan
from selfvox.ops import losses
from selfvox.ops.metrics import dice_per_class
from selfvox.ops.outcome import Batch, Outcome
from selfvox.ops.planes import Plane, equal_spacing
from selfvox.ops.regions import (
    REGIONS_EXAMPLE,
    Regions,
    check_regions,
    decode_regions,
    membership_matrix,
    parse_regions,
    region_labels,
    regions_to_json,
)
from selfvox.settings.verbs import Finetune
from selfvox.training.augment import augment
from selfvox.training.downstream import DownstreamTask
from selfvox.training.loop import Objective

FOREGROUND_SHARE = 0.5


class Segmentation(DownstreamTask):
    """A U-Net, soft Dice, crops of which half lie on a labelled voxel; the best by mean Dice on whole scans."""

    score, scans = "dice", "labelled scans"

    def __init__(self, store: Store, settings: Finetune):
        for name, option in (("balance", "balance"), ("ordinal", "no-ordinal")):
            if getattr(settings, name) != getattr(Finetune, name):  # the defaults
                raise UsageError(
                    f"{name}: is of classification, but {store.path} holds labels; leave --{option} out"
                )
        self.classes, self.loss, self.linear = (
            _classes(store),
            settings.loss,
            settings.head == "linear",
        )
        self.axis = slice_axis(settings.slices, store.cases)
        self.regions = _regions(store, settings, self.classes)
        # what is written where each region was found; None: the network tells classes apart
        self.own = (
            region_labels(self.regions, self.classes) if settings.train_on == "regions" else None
        )

    def usable(self, case: StoredCase) -> bool:  # noqa: D102
        return case.has_label

    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:  # noqa: D102
        return {}

    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> Segmenter:  # noqa: D102
        return Segmenter(
            encoder, len(self.own or self.classes), spec.get("norm", "instance"), self.linear
        )

    def card(self) -> dict[str, Any]:  # noqa: D102
        classes = {str(value): name for value, name in self.classes.items()}
        trained_on = "classes" if self.own is None else "regions"
        return {
            "classes": classes,
            "regions": regions_to_json(self.regions or None),
            "trained_on": trained_on,
        }

    def objective(  # noqa: D102
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> SegmentationObjective:
        assert isinstance(network, Segmenter)
        planes = equal_spacing(*distinct_spacings(in_plane_cases(training, self.axis)))
        parts = membership_matrix(self.regions, max(self.classes)) if self.own else None
        return SegmentationObjective(
            network, list(self.classes), self.loss, planes, frozen_steps, parts
        )

    def data(  # noqa: D102
        self, store: Store, training: Sequence[StoredCase], crop: Sequence[int], seed: int
    ) -> Crops:
        return Crops(
            store, training, crop, seed, labels=True, foreground=FOREGROUND_SHARE, axis=self.axis
        )

    def validate(  # noqa: D102
        self,
        network: nn.Module,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        crop: Sequence[int],
    ) -> tuple[float, dict[str, float]]:
        values, names = list(self.classes), [*list(self.classes.values())[1:], *self.regions]
        parts = membership_matrix(self.regions, 2**16 - 1)
        scores = []
        for case in cases:
            image = fabric.to_device(
                torch.from_numpy(store.crop(case, (0,) * len(case.shape), case.shape))
            )
            with fabric.autocast():
                found = segment_scan(
                    network, image, crop, 0.25, self.axis, overlapping=self.own is not None
                ).cpu()
            label = (
                np.array(values)[found.argmax(0)]
                if self.own is None
                else decode_regions(found, self.own)
            )
            truth = store.label_crop(case, (0,) * len(case.shape), case.shape)
            found_at, truth_at = (np.searchsorted(values, each) for each in (label, truth))
            of_regions = [dice_per_class(row[label], row[truth], 2)[0] for row in parts]
            scores.append([*dice_per_class(found_at, truth_at, len(values)), *of_regions])
        means = torch.tensor(scores, dtype=torch.float64).mean(0)
        # the best is the best at what it was trained on
        asked = means[: len(values) - 1] if self.own is None else means[len(values) - 1 :]
        mean = float(asked.mean())
        return mean, {
            "dice_mean": mean,
            **{f"dice_{n}": float(d) for n, d in zip(names, means, strict=True)},
        }


class SegmentationObjective(Objective):
    """A segmenter and the loss of its labels."""

    def __init__(
        self,
        network: Segmenter,
        values: Sequence[int],
        loss: str,
        planes: Sequence[Plane],
        frozen_steps: int,
        parts: np.ndarray | None = None,
    ):
        super().__init__()
        self.network, self.planes, self.frozen_steps = network, planes, frozen_steps
        self.values = torch.tensor(
            values
        )  # what labels hold, in the order of the network's outputs
        self.parts = (
            None if parts is None else torch.from_numpy(parts)
        )  # (region, label value), as of `membership`
        if parts is None:
            self.loss = losses.soft_dice if loss == "dice" else losses.dice_cross_entropy
        else:
            self.loss = (
                losses.soft_dice_regions if loss == "dice" else losses.dice_cross_entropy_regions
            )

    def forward(self, batch: Batch, step: int, rng: torch.Generator) -> Outcome:
        """Augment, segment, compare."""
        image, label = augment(batch["image"], batch["label"], self.planes, rng)
        frozen = step < self.frozen_steps
        # a frozen encoder's normalisation stands still too
        self.network.encoder.train(not frozen)
        with torch.set_grad_enabled(not frozen):
            maps = self.network.encoder(image)
        if self.parts is None:
            output = torch.searchsorted(self.values.to(label.device), label.long())
        else:
            output = self.parts.to(label.device)[:, label.long()].movedim(0, 1)
        return Outcome(self.loss(self.network.decode(maps, image.shape[2:]), output), {})


def _regions(store: Store, settings: Finetune, classes: Mapping[int, str]) -> Regions:
    """The regions asked for, or those of the data set; may be none."""
    regions = (
        parse_regions(settings.regions) if settings.regions is not None else store.regions or {}
    )
    if settings.regions is not None:
        check_regions(regions, classes)
    if settings.train_on == "regions" and not regions:
        raise UsageError(
            f"train_on: {store.path} declares no regions; give them with --regions '{REGIONS_EXAMPLE}'"
        )
    return regions


def _classes(store: Store) -> dict[int, str]:
    """The classes by label value, in the order of the network's outputs; the values may have gaps."""
    if not store.classes or len(store.classes) < 2:
        raise DataError(f"{store.path}: holds no labels; name a folder of scans with labels")
    return dict(sorted(store.classes.items()))
