"""Trained networks, loaded from the folder of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.preparation.geometry import Geometry, place_in_scan
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.recipe import Recipe, recipe_of_card
from selfvox.data.preparation.resample import resample_probabilities_back
from selfvox.data.preparation.scan_range import ScanRange
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, is_python_class
from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.models.segmenter import Segmenter
from selfvox.ops.flips import named_axes
from selfvox.ops.regions import Regions, decode_regions, region_labels
from selfvox.runs.card import (
    AnyNetworkCard,
    ClassifierCard,
    DropoutRates,
    NetworkCard,
    RegressorCard,
    SegmenterCard,
)
from selfvox.runs.fold_folder import fold_folder, fold_runs
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import read_run_record
from selfvox.runs.weights import load_strictly, part_folder, read_network, read_network_card
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


def load_model(run: Path) -> TrainedModel:
    """Load the network of a fine-tuning run, or of its `network/` folder; its card says the kind.

    Raises:
        WeightsError: it is missing or damaged, its weights do not fit, or the folder is no
            fine-tuning run.
    """
    tensors, card = _read_network(run)
    if isinstance(card, RegressorCard):
        return _build(run, card, tensors, _regressor_from_card)
    if isinstance(card, ClassifierCard):
        return _build(run, card, tensors, _classifier_from_card)
    return _build(run, card, tensors, _segmenter_from_card)


def warn_if_unfinished(run: Path) -> None:
    """Print that the training of a run was stopped early, or goes on still."""
    record = read_run_record(run)
    status = record.get("status")
    if status in (None, "finished"):
        return
    step = read_network_card(run).step
    steps = f" of {record['steps']}" if "steps" in record else ""
    echo(
        f"{run}: its training is not finished ({printable(str(status))}); this network is of step "
        f"{step}{steps}; continue it with `selfvox finetune --config {run}/settings.yaml --resume`"
    )


def load_segmenter(run: Path, encoder: nn.Module | None = None) -> TrainedSegmenter:
    """Load the segmenter of a fine-tuning run, or of its `network/` folder.

    Args:
        run: a fine-tuning run.
        encoder: a copy of it gets the weights; needed where the run was given a module of one's
            own.

    Raises:
        WeightsError: as `load_model`, or the run classifies whole scans.
    """
    tensors, card = _read_network(run)
    if isinstance(card, RegressorCard):
        raise WeightsError(f"{run}: predicts a number of whole scans; use selfvox.predict")
    if isinstance(card, ClassifierCard):
        raise WeightsError(f"{run}: classifies whole scans; load it with load_classifier")
    return _build(run, card, tensors, _segmenter_from_card, encoder)


def load_classifier(run: Path, encoder: nn.Module | None = None) -> TrainedClassifier:
    """Load the classifier of a fine-tuning run, or of its `network/` folder.

    Args:
        run: a fine-tuning run.
        encoder: as in `load_segmenter`.

    Raises:
        WeightsError: as `load_model`, or the run segments.
    """
    tensors, card = _read_network(run)
    if isinstance(card, RegressorCard):
        raise WeightsError(f"{run}: predicts a number of whole scans; use selfvox.predict")
    if isinstance(card, SegmenterCard):
        raise WeightsError(f"{run}: segments; load it with load_segmenter")
    return _build(run, card, tensors, _classifier_from_card, encoder)


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


AnyCard = TypeVar("AnyCard", SegmenterCard, ClassifierCard, RegressorCard)
Model = TypeVar("Model", TrainedSegmenter, TrainedClassifier, TrainedRegressor)


def _build(
    run: Path,
    card: AnyCard,
    tensors: Mapping[str, Tensor],
    from_card: Callable[[AnyCard, nn.Module | None], Model],
    encoder: nn.Module | None = None,
) -> Model:
    """The model that the card describes, with these weights."""
    folder = part_folder(run, "network")
    if encoder is None and is_python_class(card.network):
        raise UsageError(
            f"{run}: its encoder is of the Python class {card.network['name']}, which selfvox "
            "cannot build; predict in Python, with an object of this class: "
            "selfvox.load_segmenter(run, encoder=...), or load_classifier"
        )
    try:
        # a copy: the networks of an ensemble have weights of their own
        model = from_card(card, deepcopy(encoder))
    # a card that was edited by hand fails in any of these ways
    except (KeyError, TypeError, ValueError, AttributeError, UsageError, WeightsError) as error:
        raise WeightsError(
            f"{folder / 'network.json'}: damaged ({error!r}); copy it again"
        ) from None
    report = load_strictly(model.network, tensors, str(folder))
    echo(f"network: {report}, of step {card.step}")
    # dropout and batch statistics of the network itself must be off
    model.network.eval()
    return model


def _segmenter_from_card(card: SegmenterCard, encoder: nn.Module | None) -> TrainedSegmenter:
    # the outputs are classes, unless the card says regions
    labels = None
    if card.trained_on_regions:
        labels = tuple(region_labels(card.regions or {}, card.classes))
    built = build_encoder(encoder or card.network, card.spatial_dims, card.in_channels)
    outputs = len(labels or card.classes)
    # networks of other libraries have no such setting; the decoder then has instance norm
    norm = card.network.get("norm", "instance")
    return TrainedSegmenter(
        network=Segmenter(built, outputs, norm, card.is_linear),
        recipe=recipe_of_card(card, "the network"),
        window=card.crop,
        classes=dict(card.classes),
        sha256=card.sha256,
        slice_axis=SLICE_AXES[card.slices] if card.slices else None,
        regions=card.regions,
        region_labels=labels,
        dropout=card.dropout,
        mirror_axes=_mirror_axes(card),
        scans=_scan_range(card),
    )


def _mirror_axes(card: NetworkCard) -> tuple[int, ...]:
    """Axes of a prepared scan, which of slices is a volume."""
    return named_axes(card.mirror or (), recipe_of_card(card, "the network").spatial_dims)


def _scan_range(card: NetworkCard) -> ScanRange | None:
    """What its training scans are."""
    return None if card.scans is None else ScanRange.from_dict(card.scans)


def _classifier_from_card(card: ClassifierCard, encoder: nn.Module | None) -> TrainedClassifier:
    built = build_encoder(encoder or card.network, card.spatial_dims, card.in_channels)
    return TrainedClassifier(
        network=Classifier(built, len(card.classes), card.ordinal, card.is_linear),
        recipe=recipe_of_card(card, "the network"),
        input_size=card.crop,
        classes=card.classes,
        sha256=card.sha256,
        dropout=card.dropout,
        mirror_axes=_mirror_axes(card),
        scans=_scan_range(card),
        class_names=card.names,
    )


def _regressor_from_card(card: RegressorCard, encoder: nn.Module | None) -> TrainedRegressor:
    built = build_encoder(encoder or card.network, card.spatial_dims, card.in_channels)
    return TrainedRegressor(
        network=Regressor(built, card.is_linear),
        recipe=recipe_of_card(card, "the network"),
        input_size=card.crop,
        sha256=card.sha256,
        dropout=card.dropout,
        mirror_axes=_mirror_axes(card),
        scans=_scan_range(card),
    )


def _read_network(run: Path) -> tuple[dict[str, Tensor], AnyNetworkCard]:
    """Tensors and card of a run's network.

    Raises:
        WeightsError: they are missing or damaged; says what the folder is instead, where that is
            clear.
    """
    folder = part_folder(run, "network")
    if not (folder / "network.json").exists():
        _refuse_other_folder(run)
    return read_network(run)


def _refuse_other_folder(run: Path) -> None:
    """Say what `run` is, if it is a pre-training run, a store or scans."""
    if fold_runs(run):
        raise WeightsError(f"{run}: has the runs of several folds; name one, {fold_folder(run, 1)}")
    if fold_folder(run, 1).is_dir():
        raise WeightsError(
            f"{run}: not all folds are finished; go on with `selfvox finetune --config "
            f"{fold_folder(run, 1)}/settings.yaml --out {run} --resume`, or name one fold"
        )
    remedy = "name a fine-tuning run first, then the scans"
    if _verb(run) == "pretrain" or (part_folder(run, "encoder") / "encoder.json").exists():
        raise WeightsError(
            f"{run}: is a pre-training run, without a network that predicts; fine-tune it first: "
            f"`selfvox finetune LABELLED/ --encoder {run} --out RUN`"
        )
    if is_store(run):
        raise WeightsError(f"{run}: is a store of prepared scans, not a run; {remedy}")
    if (run / "run.json").exists():
        return  # a run without its network: its curves are pictures, but no scans
    scan = _first_scan(run)
    if scan is not None:
        raise WeightsError(f"{run}: contains scans, such as {scan.name}, and is no run; {remedy}")


def _verb(run: Path) -> str | None:
    """The verb that made a run; None where that is not known."""
    verb: str | None = read_run_record(run).get("verb")
    return verb


def _first_scan(path: Path) -> Path | None:
    """A scan: the path itself, or the first one met in the folder."""
    if path.is_file():
        return path if suffix(path) else None
    # lazy: a folder of scans may have 100 000 files
    return next((file for file in path.rglob("*") if suffix(file)), None)
