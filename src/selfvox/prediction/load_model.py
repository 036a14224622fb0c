"""Load trained networks from the folder of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from selfvox.data.formats.image import suffix
from selfvox.data.naming import printable
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.recipe import recipe_of_card
from selfvox.data.preparation.scan_range import ScanRange
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, is_python_class
from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.models.segmenter import Segmenter
from selfvox.ops.flips import named_axes
from selfvox.ops.regions import region_labels
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedModel,
    TrainedRegressor,
    TrainedSegmenter,
)
from selfvox.runs.card import (
    AnyNetworkCard,
    ClassifierCard,
    NetworkCard,
    RegressorCard,
    SegmenterCard,
)
from selfvox.runs.fold_folder import fold_folder, fold_runs
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import read_run_record
from selfvox.runs.weights import load_strictly, part_folder, read_network, read_network_card


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
