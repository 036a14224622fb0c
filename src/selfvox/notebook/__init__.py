"""Trained networks for notebooks: predictions and embeddings of arrays, files and nibabel images.

They run the code of the command line: the recipe of the run prepares a scan, and a result is on the
scan's own grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import recipe_of_card
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError
from selfvox.models.build import load_encoder as load_trained_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import pad_to_window
from selfvox.notebook.options import (
    PassOptions,
    SegmentationOptions,
    predict_settings,
    shows_options,
)
from selfvox.notebook.scans import AnyPath, Scan, read_scan
from selfvox.prediction import classify, load_model, segment
from selfvox.prediction.segmentation_result import Segmentation
from selfvox.prediction.trained_model import TrainedClassifier, TrainedSegmenter
from selfvox.runs.card import Card
from selfvox.runs.device import Fabric, inference_mode, make_fabric
from selfvox.runs.fold_folder import name_networks
from selfvox.settings.python_syntax import python_errors
from selfvox.uncertainty.class_votes import ClassVotes
from selfvox.uncertainty.ensemble import PassSettings


@dataclass(frozen=True)
class SegmentedScan:
    """A predicted segmentation, on the grid of its scan."""

    label: np.ndarray  # (*space), class numbers
    probabilities: np.ndarray  # (class or region, *space), mean over the passes
    maps: Mapping[str, np.ndarray]  # by name, such as "entropy"
    review: Mapping[str, Any] | None  # of several passes: trust, entropy, volumes with their spread
    classes: Mapping[int, str]  # name by class number
    image: Image  # the scan

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): voxel index -> mm, RAS+."""
        return self.image.affine

    @property
    def spacing(self) -> tuple[float, ...]:
        """Edges of a voxel in mm; 1 for pictures."""
        return self.image.spacing_mm

    @property
    def trust(self) -> float | None:
        """Mean agreement of the passes with their vote, 0 to 1; None for a single prediction."""
        return None if self.review is None else float(self.review["trust"])

    @property
    def volumes(self) -> dict[str, tuple[float, float, float]]:
        """Each volume in ml (pictures: pixels), between the ends of the spread of the passes.

        By name of class or region; empty for a single prediction. The spread says how much the
        passes differ, not how far the truth may be away.
        """
        if self.review is None:
            return {}
        measures = {self.classes[row["class"]]: row for row in self.review["classes"]}
        measures |= {row["region"]: row for row in self.review["regions"]}
        return {
            name: (float(row["low"]), float(row["volume"]), float(row["high"]))
            for name, row in measures.items()
        }

    def to_nibabel(self) -> nib.Nifti1Image:
        """The label as a NIfTI image.

        Raises:
            UsageError: the scan is a picture.
        """
        if self.image.spatial_dims != 3:
            raise UsageError("a picture has no NIfTI image; use save() to write a .png")
        return nib.Nifti1Image(self.label, self.affine)

    def save(self, path: AnyPath) -> Path:
        """Write the label: .nii.gz or .nii for a volume, .png for a picture."""
        images.write_label(Path(path), self.label, self.image, self.classes)
        return Path(path)


class LoadedEncoder:
    """A pre-trained encoder with the recipe of its scans; made by `selfvox.load_encoder`.

    Attributes:
        network: the encoder: (batch, channel, *space) -> one map per level, finest first.
        card: what the run says of it: network, crop, recipe, pretext task.
    """

    def __init__(self, network: Encoder, card: Card, fabric: Fabric):
        self.network: Encoder = network.eval()
        fabric.to_device(network)
        self.card = card
        self.recipe = recipe_of_card(card, "the encoder")
        self._slice_axis = SLICE_AXES[card.slices] if card.slices else None
        self._fabric = fabric

    @property
    def module(self) -> nn.Module:
        """The plain PyTorch network inside, of its library's own class and tensor names."""
        inner = getattr(self.network, "net", self.network)
        assert isinstance(inner, nn.Module)
        return inner

    def embed(
        self,
        scan: Scan,
        spacing: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
    ) -> np.ndarray:
        """The embedding (width,) of a scan: the maximum of each channel of the coarsest map.

        Of an encoder of slices, one embedding for each slice: (slice, width).

        Args:
            scan: a path, an array (*space) or (channel, *space), or an image of nibabel.
            spacing: mm between the voxels of an array.
            affine: (4, 4) of an array, in place of `spacing`; default: axes from left to right,
                back to front and foot to head.

        Raises:
            SelfvoxError: the scan does not fit the recipe of the run, or its spacing is missing.
        """
        embeddings = self._maps(scan, spacing, affine)[-1].flatten(2).amax(2)
        return self._to_array(embeddings)

    def maps(
        self,
        scan: Scan,
        spacing: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """The feature maps (channel, *space) of a prepared scan, finest first.

        The scan is mirrored at its edges up to a multiple of the coarsest stride, and passes the
        encoder as a whole. Of an encoder of slices: (slice, channel, *space).

        Args:
            scan: as in `embed`.
            spacing: as in `embed`.
            affine: as in `embed`.
        """
        return [self._to_array(level) for level in self._maps(scan, spacing, affine)]

    @python_errors("predict")
    def _maps(
        self, scan: Scan, spacing: Sequence[float] | None, affine: np.ndarray | None
    ) -> list[Tensor]:
        image = read_scan(scan, self.recipe, spacing, affine)
        data = torch.from_numpy(self.recipe.apply(image).data)
        axis = self._slice_axis
        # a scan is a batch of one, its slices are a batch of many
        batch = data[None] if axis is None else data.movedim(1 + axis, 0)
        window = [
            # rounded up
            -(-edge // stride) * stride
            for edge, stride in zip(batch.shape[2:], self.network.strides[-1], strict=True)
        ]
        with inference_mode(self._fabric):
            # a map of the coarsest level needs whole strides
            padded, _ = pad_to_window(batch, window)
            maps: list[Tensor] = self.network(self._fabric.to_device(padded))
        return maps

    def _to_array(self, values: Tensor) -> np.ndarray:
        # NumPy has no bf16
        array: np.ndarray = values.float().cpu().numpy()
        return array if self._slice_axis is not None else array[0]


class LoadedSegmenter:
    """Trained segmenters that predict together; made by `selfvox.load_segmenter`."""

    def __init__(self, models: Sequence[TrainedSegmenter], fabric: Fabric):
        self.models = models
        self._fabric = fabric

    @property
    def network(self) -> Segmenter:
        """The (first) network: (batch, channel, *space) -> logits (batch, class, *space)."""
        return self.models[0].network

    @property
    def classes(self) -> Mapping[int, str]:
        """Name by class number."""
        return self.models[0].classes

    @shows_options(SegmentationOptions)
    @python_errors("predict")
    def predict(
        self,
        scan: Scan,
        spacing: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        **options: Unpack[SegmentationOptions],
    ) -> SegmentedScan:
        """Segment one scan; options and their defaults are those of `selfvox.predict`.

        Args:
            scan: a path, an array (*space) or (channel, *space), or an image of nibabel.
            spacing: mm between the voxels of an array.
            affine: (4, 4) of an array, in place of `spacing`; default: axes from left to right,
                back to front and foot to head.
            **options: those of the signature; `help(selfvox.predict)` describes each.

        Raises:
            SelfvoxError: an option or the scan does not fit, or its spacing is missing.
        """
        settings = predict_settings(len(self.models), SegmentationOptions, options)
        pass_settings = PassSettings.from_verb(settings, self.models[0].dropout)
        # the volumes of a review are in ml
        measures = pass_settings.has_several(len(self.models))
        recipe = self.models[0].recipe
        image = read_scan(scan, recipe, spacing, affine, needs_spacing=measures)
        result: Segmentation = segment.predict_image(
            self.models,
            image,
            pass_settings,
            overlap=settings.overlap,
            fabric=self._fabric,
            force=settings.force,
        )
        assert result.probabilities is not None
        return SegmentedScan(
            label=result.label,
            probabilities=result.probabilities,
            maps=result.maps,
            review=result.review,
            classes=self.classes,
            image=image,
        )


class LoadedClassifier:
    """Trained classifiers that predict together; made by `selfvox.load_classifier`."""

    def __init__(self, models: Sequence[TrainedClassifier], fabric: Fabric):
        self.models = models
        self._fabric = fabric

    @property
    def network(self) -> Classifier:
        """The (first) network: (batch, channel, *space) -> logits."""
        return self.models[0].network

    @property
    def classes(self) -> Sequence[str]:
        """Grades of the classes, in the order of their probabilities."""
        return self.models[0].classes

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes, in the same order; their grades, where they have none."""
        return self.models[0].names

    @shows_options(PassOptions)
    @python_errors("predict")
    def predict(
        self,
        scan: Scan,
        spacing: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        **options: Unpack[PassOptions],
    ) -> ClassVotes:
        """Classify one scan: the class, its probabilities, their spread and trust.

        The arguments are those of `LoadedSegmenter.predict`, with the options of `PassOptions`.
        """
        settings = predict_settings(len(self.models), PassOptions, options)
        image = read_scan(scan, self.models[0].recipe, spacing, affine)
        pass_settings = PassSettings.from_verb(settings, self.models[0].dropout)
        return classify.predict_image(
            self.models, image, pass_settings, fabric=self._fabric, force=settings.force
        )


def load_encoder(
    run: AnyPath, network: nn.Module | None, device: str, precision: str
) -> LoadedEncoder:
    """As `selfvox.load_encoder`."""
    with python_errors("predict", [run]):
        encoder, card = load_trained_encoder(Path(run), network)
        return LoadedEncoder(encoder, card, make_fabric(device, 1, precision))


def load_segmenter(
    runs: AnyPath | Sequence[AnyPath], encoder: nn.Module | None, device: str, precision: str
) -> LoadedSegmenter:
    """As `selfvox.load_segmenter`."""
    with python_errors("predict", _paths(runs)):
        networks = name_networks(_paths(runs))
        models = [load_model.load_segmenter(run, encoder) for run in networks]
        return LoadedSegmenter(models, make_fabric(device, 1, precision))


def load_classifier(
    runs: AnyPath | Sequence[AnyPath], encoder: nn.Module | None, device: str, precision: str
) -> LoadedClassifier:
    """As `selfvox.load_classifier`."""
    with python_errors("predict", _paths(runs)):
        models = [load_model.load_classifier(run, encoder) for run in name_networks(_paths(runs))]
        return LoadedClassifier(models, make_fabric(device, 1, precision))


def _paths(runs: AnyPath | Sequence[AnyPath]) -> list[Path]:
    return [Path(runs)] if isinstance(runs, str | os.PathLike) else [Path(run) for run in runs]
