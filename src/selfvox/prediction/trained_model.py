"""Trained networks, the recipes of their scans, and the meaning of their outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfvox.data.preparation.geometry import Geometry, place_in_scan
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.resample import resample_probabilities_back
from selfvox.data.preparation.scan_range import ScanRange
from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.models.segmenter import Segmenter
from selfvox.ops.regions import Regions, decode_regions
from selfvox.runs.card import (
    DropoutRates,
)
from selfvox.uncertainty.vote_rules import winner


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained segmenter, the recipe of its scans, and the meaning of its outputs."""

    network: Segmenter
    recipe: Recipe
    window: tuple[int, ...]  # edges in voxels of the crops that it was trained on
    classes: dict[int, str]  # name by class number
    sha256: str  # of its weights
    slice_axis: int | None = None  # of the volumes, for a 2D network trained on their slices
    regions: Regions | None = None
    # of a network trained on regions: the class number that is written for each region
    region_labels: tuple[int, ...] | None = None
    dropout: DropoutRates | None = None  # that it was trained with
    mirror_axes: tuple[int, ...] = ()  # of space, along which the training mirrored scans
    scans: ScanRange | None = None  # that it was trained on; None: the run does not say

    @property
    def trained_on_regions(self) -> bool:
        """Whether each output is a region with a probability of its own, instead of a class."""
        return self.region_labels is not None

    @property
    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and class numbers of each output: a class, or a region that it was trained on."""
        if self.trained_on_regions:
            return list((self.regions or {}).items())
        return [(self.classes[value], (value,)) for value in sorted(self.classes)]

    @property
    def output_names(self) -> list[str]:
        """Name of each output."""
        return [name for name, _ in self.outputs]

    @property
    def class_values(self) -> np.ndarray:
        """Class number by class index: the numbers of a data set may have gaps."""
        return np.array(sorted(self.classes), np.uint16)

    @property
    def resamples(self) -> bool:
        """Whether its recipe changes the size of voxels."""
        return self.recipe.size is not None or self.recipe.spacing_mm is not None

    def decide(self, probabilities: Iterable[np.ndarray]) -> np.ndarray:
        """Class numbers (*space), from probabilities (*space) of one class or region at a time."""
        if self.region_labels is not None:
            return decode_regions(probabilities, self.region_labels)
        return _decode_classes(probabilities, self.class_values)

    def class_indices(self, scores: Tensor) -> Tensor:
        """Class indices (*space) of what scores (class or region, *space) of a vote decide."""
        if self.region_labels is None:
            return winner(scores)
        values = decode_regions(scores.cpu(), self.region_labels)
        indices = np.searchsorted(self.class_values, values).astype(np.uint8)
        return torch.from_numpy(indices).to(scores.device)

    def decide_on_scan(self, probabilities: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Class numbers on the scan's grid from probabilities (class or region, *space).

        Where voxels change their size, probabilities are resampled and then decide. One class
        after the other: on that grid, all of them together could fill memory.
        """
        in_box = self.decide(
            resample_probabilities_back(values, geometry) for values in probabilities
        )
        return place_in_scan(in_box, geometry)

    def undo(self, probabilities: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Probabilities (class or region, *space) on the scan's grid.

        Outside the foreground box, everything is background and in no region.
        """
        return self.recipe.undo_probabilities(
            probabilities, geometry, background=not self.trained_on_regions
        )


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier of whole scans, and the recipe of its scans."""

    network: Classifier
    recipe: Recipe
    input_size: tuple[int, ...]  # edges in voxels that every scan is resized to
    classes: tuple[str, ...]  # grades, as tables write them
    sha256: str  # of its weights
    dropout: DropoutRates | None = None  # that it was trained with
    mirror_axes: tuple[int, ...] = ()  # of space, along which the training mirrored scans
    scans: ScanRange | None = None  # that it was trained on; None: the run does not say
    class_names: tuple[str, ...] | None = None  # where the data set has names

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called: by default as their grades."""
        return self.class_names or self.classes

    def probabilities(self, images: Tensor) -> Tensor:
        """(batch, channel, *input_size) -> (batch, class), without dropout."""
        return self.network.probabilities(self.network(images))


@dataclass(frozen=True)
class TrainedRegressor:
    """A trained network that predicts a number of whole scans, and the recipe of its scans."""

    network: Regressor
    recipe: Recipe
    input_size: tuple[int, ...]  # edges in voxels that every scan is resized to
    sha256: str  # of its weights
    dropout: DropoutRates | None = None  # that it was trained with
    mirror_axes: tuple[int, ...] = ()  # of space, along which the training mirrored scans
    scans: ScanRange | None = None  # that it was trained on; None: the run does not say

    @property
    def constant(self) -> float:
        """Median of the training targets: what to predict without looking at a scan."""
        return float(self.network.median)

    def probabilities(self, images: Tensor) -> Tensor:
        """(batch, channel, *input_size) -> (batch, 1), without dropout."""
        prediction: Tensor = self.network(images)
        return prediction


TrainedModel = TrainedSegmenter | TrainedClassifier | TrainedRegressor


def _decode_classes(probabilities: Iterable[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Class numbers (*space), uint16, of the largest probability; of equal ones, the first."""
    best: np.ndarray | None = None
    for probability, value in zip(probabilities, values, strict=True):
        if best is None:
            best = probability.copy()
            decided = np.full(best.shape, value, np.uint16)
            continue
        decided[probability > best] = value
        np.maximum(best, probability, out=best)
    assert best is not None, "a network has at least one class"
    return decided
