"""A trained classifier, loaded from its run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.preparation.recipe import Recipe
from selfvox.errors import WeightsError
from selfvox.models.build import build_encoder
from selfvox.models.classifier import Classifier
from selfvox.runs.progress import echo
from selfvox.runs.weights import load_part, load_strictly, part_folder


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and all that it takes to ask it."""

    network: Classifier
    recipe: Recipe
    size: tuple[int, ...]  # edges in voxels that every scan is resized to
    classes: tuple[str, ...]
    sha256: str  # of its weights


def is_classifier(run: Path) -> bool:
    """Whether the run's network classifies whole scans; False also where there is no readable network."""
    try:
        card = json.loads(
            (part_folder(run, "network") / "network.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and "ordinal" in card


def load_classifier(run: Path) -> TrainedClassifier:
    """The classifier of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = part_folder(run, "network")
    tensors, card = load_part(folder, "network")
    try:
        classes = tuple(str(name) for name in card["classes"])
        encoder = build_encoder(card["network"], card["spatial_dims"], card["in_channels"])
        network = Classifier(
            encoder, len(classes), bool(card["ordinal"]), card.get("head") == "linear"
        )
        recipe, size = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{folder / 'network.json'}: damaged ({error!r}); copy it again"
        ) from None
    echo(f"network: {load_strictly(network, tensors, str(folder))}, of step {card.get('step')}")
    return TrainedClassifier(network.eval(), recipe, size, classes, card["sha256"])
