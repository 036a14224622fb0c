"""Fine-tuning for segmentation: a class for every voxel."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import slice_axis
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError, UsageError
from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import segment_scan
from selfvox.ops.metrics import dice_per_class
from selfvox.ops.regions import (
    REGIONS_EXAMPLE,
    Regions,
    check_region_names,
    check_regions,
    decode_regions,
    membership_matrix,
    nested_regions,
    parse_regions,
    region_labels,
)
from selfvox.runs.card import SegmenterCard
from selfvox.runs.device import Fabric
from selfvox.settings.verbs import Finetune
from selfvox.training.augment import STRENGTHS, Augmentation
from selfvox.training.downstream import DownstreamTask, Validation
from selfvox.training.dropout import TrainingDropout, dropout_rates
from selfvox.training.lost_classes import find_lost
from selfvox.training.mirror import axis_names, check_sides, mirror_axes
from selfvox.training.segmentation_objective import SegmentationObjective
from selfvox.uncertainty.labelling import ClassLabelling, Labelling, RegionLabelling

FOREGROUND_SHARE = 0.5  # of the crops; random crops alone would seldom show a small class
OVERLAP = 0.25  # of the windows in validation; `predict` takes more, which is slower
MAX_LABEL = 2**16 - 1  # labels are uint16 at most


class Segmentation(DownstreamTask):
    """Segment volumes, slices or pictures with a U-Net; validated by their mean Dice.

    Training crops are drawn around a labelled voxel half of the time.

    Args:
        store: the labelled scans.
        settings: of the verb.
        ignored: label value of voxels that the loss leaves out; None: there are none.
    """

    score = "dice"
    scans = "labelled scans"

    def __init__(self, store: Store, settings: Finetune, ignored: int | None = None):
        self.classes = _classes(store)
        self.ignored = ignored
        self.loss = settings.loss
        self.class_weights = settings.class_weights
        self.linear = settings.head == "linear"
        self.dropout = dropout_rates(settings)
        self.axis = slice_axis(settings.slices, store.cases)
        names = axis_names(len(store.cases[0].shape), self.axis)
        mirror = mirror_axes(settings.mirror or (), names)
        check_sides(mirror, names, self.classes.values())
        self.learning_rate = settings.learning_rate or 4e-3
        self.augment = settings.augment or "strong"
        self.augmentation = Augmentation(STRENGTHS[self.augment], mirror)
        self.mirrored = tuple(names[axis] for axis in mirror)
        self.regions = _regions(store, settings, self.classes)
        # the label that is written where each region is predicted; None: the outputs are classes
        self.region_labels: list[int] | None = None
        if settings.train_on == "regions":
            self.region_labels = region_labels(self.regions, self.classes)
        self._check_class_weights()

    def _check_class_weights(self) -> None:
        """Refuse weights that are not one for each output, or all 0.

        Raises:
            UsageError: they are.
        """
        if self.class_weights is None:
            return
        outputs = list(self.classes.values())
        if self.region_labels is not None:
            outputs = list(self.regions)
        if len(self.class_weights) != len(outputs) or not any(self.class_weights):
            raise UsageError(
                f"class_weights: give {len(outputs)} numbers that are not all 0, one for each of "
                f"{', '.join(outputs)}"
            )

    def usable(self, case: StoredCase) -> bool:  # noqa: D102
        return case.has_label

    def untaught(self, training: Sequence[StoredCase]) -> list[str]:  # noqa: D102
        seen = {value for case in training for value in case.label_values}
        return [name for value, name in self.classes.items() if value and value not in seen]

    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:  # noqa: D102
        return {}

    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> Segmenter:  # noqa: D102
        outputs = len(self.region_labels or self.classes)
        return Segmenter(encoder, outputs, spec.get("norm", "instance"), self.linear)

    def card(self, **shared: Any) -> SegmenterCard:  # noqa: D102
        return SegmenterCard(
            **shared,
            classes=self.classes,
            dropout=self.dropout,
            mirror=self.mirrored or None,
            regions=self.regions or None,
            trained_on="classes" if self.region_labels is None else "regions",
        )

    def objective(  # noqa: D102
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> SegmentationObjective:
        assert isinstance(network, Segmenter)
        membership = None
        if self.region_labels:
            membership = membership_matrix(self.regions, max(self.classes))
        dropout = TrainingDropout(network.encoder, network.decoder, self.dropout)
        return SegmentationObjective(
            network,
            list(self.classes),
            self.loss,
            self.augmentation,
            frozen_steps,
            dropout,
            membership,
            self.class_weights,
            self.ignored,
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
    ) -> Validation:
        scores = []
        contained = []
        for case in cases:
            image = torch.from_numpy(store.crop(case, (0,) * len(case.shape), case.shape))
            label = self._predict(network, fabric, image, crop)
            truth = store.label_crop(case, (0,) * len(case.shape), case.shape)
            scores.append([*self._class_dice(label, truth), *self._region_dice(label, truth)])
            contained.append(self._contained(truth))
        dice = np.array(scores)
        names = [*list(self.classes.values())[1:], *self.regions]
        means = dict(zip(names, dice.mean(0).tolist(), strict=True))
        # the weights are selected by what the network was trained on
        outputs = slice(None, len(self.classes) - 1)
        if self.region_labels is not None:
            outputs = slice(len(self.classes) - 1, None)
        score = float(dice[:, outputs].mean())
        lost = find_lost(names[outputs], dice[:, outputs], np.array(contained)[:, outputs])
        by_name = {f"dice_{name}": mean for name, mean in means.items()}
        columns = [f"dice_{name}" for name in names]
        rows = tuple(
            {"case": case.id, **dict(zip(columns, of_case, strict=True))}
            for case, of_case in zip(cases, scores, strict=True)
        )
        return Validation(score, {"dice_mean": score, **by_name}, lost, rows)

    def _predict(
        self, network: nn.Module, fabric: Fabric, image: Tensor, crop: Sequence[int]
    ) -> np.ndarray:
        """Label values (*space) of a whole image (channel, *space)."""
        # regions overlap, so each has a probability of its own
        is_overlapping = self.region_labels is not None
        with fabric.autocast():
            probabilities = segment_scan(
                network,
                fabric.to_device(image),
                crop,
                OVERLAP,
                self.axis,
                overlapping=is_overlapping,
            ).cpu()
        return self.decide(probabilities)

    def decide(self, scores: Tensor) -> np.ndarray:
        """Label values (*space) from probabilities or votes (class or region, *space).

        Args:
            scores: on the CPU; of regions, from 0 to 1.
        """
        if self.region_labels is not None:
            return decode_regions(scores, self.region_labels)
        # outputs are numbered without gaps, labels may have some
        values = np.array(list(self.classes))
        label: np.ndarray = values[scores.argmax(0).numpy()]
        return label

    def labelling(self) -> Labelling:
        """What the outputs mean to the passes of Monte-Carlo dropout."""
        if self.region_labels is None:
            return ClassLabelling(len(self.classes))
        return RegionLabelling(nested_regions(self.regions, self.region_labels))

    def membership(self) -> np.ndarray:
        """Bool (output, label value): does the value belong to the class or region?"""
        values = {name: (value,) for value, name in self.classes.items()}
        outputs = values if self.region_labels is None else self.regions
        return membership_matrix(outputs, max(self.classes))

    def _class_dice(self, label: np.ndarray, truth: np.ndarray) -> list[float]:
        values = list(self.classes)
        return dice_per_class(
            np.searchsorted(values, label), np.searchsorted(values, truth), len(values)
        )

    def _contained(self, truth: np.ndarray) -> list[bool]:
        """Whether the scan has a voxel of each class but the background, and of each region."""
        values = np.unique(truth)
        in_regions = [
            bool(is_inside[values].any())
            for is_inside in membership_matrix(self.regions, MAX_LABEL)
        ]
        return [*(value in values for value in list(self.classes)[1:]), *in_regions]

    def _region_dice(self, label: np.ndarray, truth: np.ndarray) -> list[float]:
        return [
            dice_per_class(is_inside[label], is_inside[truth], 2)[0]
            for is_inside in membership_matrix(self.regions, MAX_LABEL)
        ]

    def describe_lost(self, lost: Sequence[str], scan: str) -> tuple[str, str]:  # noqa: D102
        options = "larger --class-weights for it, or more scans that have it"
        return (
            f"Dice of {', '.join(lost)} is 0 in every {scan}, while others are learnt",
            f"--loss log-dice, {options}" if self.loss == "dice" else options,
        )


def unused_label(classes: Collection[int]) -> int:
    """The lowest label value above 0 that is no class, for voxels that are ignored.

    Raises:
        UsageError: labels of one byte have no such value.
    """
    value = next(value for value in itertools.count(1) if value not in classes)
    if value > 255 >= max(classes):
        raise UsageError(
            "teacher: labels with 256 classes leave no value for ignored voxels; use --teacher "
            "atlas"
        )
    return value


def _regions(store: Store, settings: Finetune, classes: Mapping[int, str]) -> Regions:
    """The regions of the setting, or those of the data set; there may be none."""
    if settings.regions is None:
        regions: Regions = store.regions or {}
    else:
        regions = parse_regions(settings.regions)
        check_regions(regions, classes)
    check_region_names(regions, classes)
    if settings.train_on == "regions" and not regions:
        raise UsageError(
            f"train_on: {store.path} declares no regions; give them with "
            f"--regions '{REGIONS_EXAMPLE}'"
        )
    return regions


def _classes(store: Store) -> dict[int, str]:
    """The classes by label value, in the order of the network's outputs; values may have gaps."""
    if not store.classes:
        raise DataError(f"{store.path}: has no labels; name a folder of scans with labels")
    if len(store.classes) < 2:
        labelled = sum(case.has_label for case in store.cases)
        raise DataError(
            f"{store.path}: all {labelled} labels contain only 0, the background; name scans with "
            "labels of a class, or correct the labels"
        )
    return dict(sorted(store.classes.items()))
