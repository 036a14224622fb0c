"""A trained segmenter as it lies in a run's folder, and all that it takes to ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.sampling.crop_size import SLICE_AXES
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.ops import regions
from selfvox.ops.regions import Regions, decode_regions, region_labels
from selfvox.runs.progress import echo
from selfvox.runs.weights import load_part, load_strictly, part_folder


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained segmenter, and how scans are made ready for it and its answers are read."""

    network: Segmenter
    recipe: Recipe
    window: tuple[int, ...]  # edges in voxels of what it was trained on
    classes: dict[int, str]
    sha256: str  # of its weights
    slice_axis: int | None = None  # of the volumes whose slices it was trained on
    regions: Regions | None = None
    own: tuple[int, ...] | None = (
        None  # of a network trained on regions: the value that is written for each
    )

    @property
    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """What the network gives probabilities of, by name and label values: classes, or the regions it learned."""
        if self.own is not None:
            return list((self.regions or {}).items())
        return [(self.classes[value], (value,)) for value in sorted(self.classes)]

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Class numbers (*space) from (class, *space), or from (region, *space)."""
        if self.own is not None:
            return decode_regions(probabilities, self.own)
        decided: np.ndarray = np.array(sorted(self.classes), np.uint16)[probabilities.argmax(0)]
        return decided

    def undo(self, probabilities: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Probabilities on the scan's grid; beyond the foreground box all is background, and in no region."""
        return self.recipe.undo_probabilities(probabilities, geometry, background=self.own is None)


def load_segmenter(run: Path) -> TrainedSegmenter:
    """The segmenter of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: it is missing, damaged, or its weights do not fit.
    """
    folder = part_folder(run, "network")
    tensors, card = load_part(folder, "network")
    try:
        spec, classes = (
            card["network"],
            {int(value): str(name) for value, name in card["classes"].items()},
        )
        encoder = build_encoder(spec, card["spatial_dims"], card["in_channels"])
        parts = regions.regions_from_json(card.get("regions"))
        own = (
            tuple(region_labels(parts or {}, classes))
            if card.get("trained_on") == "regions"
            else None
        )
        network = Segmenter(
            encoder, len(own or classes), spec.get("norm", "instance"), card.get("head") == "linear"
        )
        recipe, window = Recipe.from_dict(card["recipe"]), tuple(int(edge) for edge in card["crop"])
        axis = SLICE_AXES[card["slices"]] if card.get("slices") else None
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise WeightsError(
            f"{folder / 'network.json'}: damaged ({error!r}); copy it again"
        ) from None
    echo(f"network: {load_strictly(network, tensors, str(folder))}, of step {card.get('step')}")
    return TrainedSegmenter(
        network.eval(), recipe, window, classes, card["sha256"], axis, parts, own
    )
