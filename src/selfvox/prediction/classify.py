"""Classify one scan in memory, for a notebook and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.errors import UsageError
from selfvox.ops.flips import mean_of_classes
from selfvox.ops.resize import resize
from selfvox.prediction.scan_check import compare_scan
from selfvox.prediction.trained_model import TrainedClassifier, TrainedRegressor
from selfvox.runs.device import Fabric, inference_mode, make_fabric
from selfvox.uncertainty import ensemble
from selfvox.uncertainty.class_votes import ClassVotes, count_class_votes
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.mc_dropout import DropoutMasks
from selfvox.uncertainty.mirrored_passes import run_mirrored_class_passes


def predict_image(
    models: TrainedClassifier | Sequence[TrainedClassifier],
    image: Image,
    settings: PassSettings | None = None,
    *,
    fabric: Fabric | None = None,
    force: bool = False,
) -> ClassVotes:
    """Classify one image that is in memory; of a single pass, low and high are its probabilities.

    Args:
        models: one network, or several that vote together.
        image: with its geometry, as it was read: the recipe of the run is applied here.
        settings: of passes and votes; default: one plain prediction per network.
        fabric: device and arithmetic; default: a GPU where there is one, in bf16 where the
            processor has it.
        force: also an image that is unlike those that the run was trained on.

    Raises:
        DataError: the image does not fit the recipe of the run, or is unlike its scans.
        UsageError: the networks cannot vote together, or not in this way.
    """
    models = [models] if isinstance(models, TrainedClassifier) else list(models)
    settings = settings or PassSettings()
    check_vote(models, settings)
    classifier = ScanClassifier(models, settings, fabric or make_fabric("auto", 1, "auto"))
    prepared = models[0].recipe.apply(image)
    compare_scan([model.scans for model in models], image, prepared, force=force)
    return classifier.classify(prepared)


def check_vote(
    models: Sequence[TrainedClassifier], settings: PassSettings, runs: Sequence[Path] | None = None
) -> None:
    """Refuse networks that cannot vote together, and votes and maps that whole scans do not have.

    Args:
        models: the leading one first.
        settings: of passes and votes.
        runs: their folders, for the message.

    Raises:
        UsageError: names the first such run or setting.
    """
    names = runs or [Path(f"model {number}") for number in range(len(models))]
    if settings.maps:
        raise UsageError(
            f"maps: {names[0]} classifies whole scans, which have no maps; leave --maps out"
        )
    facts = [
        {
            "list of classes": model.classes,
            "recipe": model.recipe,
            "choice of ordered or unordered classes": model.network.ordinal,
        }
        for model in models
    ]
    ensemble.check_compatible(names, facts)
    axes = [model.mirror_axes for model in models]
    ensemble.check_mirror(settings, dict(zip(names, axes, strict=True)))
    ensemble.check_vote(settings, models[0].classes)


class ScanPasses:
    """Networks of whole scans on their device, ready for one scan after the other.

    Args:
        models: the leading one first; its recipe prepares the scans.
        settings: of passes and votes.
        fabric: device and arithmetic.

    Raises:
        UsageError: dropout is asked for and a network has no activation to drop units after.
    """

    def __init__(
        self,
        models: Sequence[TrainedClassifier | TrainedRegressor],
        settings: PassSettings,
        fabric: Fabric,
    ):
        self.networks = models
        self.settings = settings
        self.fabric = fabric
        self._masks: list[DropoutMasks] = []
        for model in models:
            fabric.to_device(model.network)
            if settings.passes > 1:
                # once for all scans: a pass is the same network on each of them
                network = model.network
                self._masks.append(DropoutMasks(network.encoder, network.head, settings.dropout))

    @property
    def votes(self) -> bool:
        """Whether there are several predictions of each scan."""
        return self.settings.has_several(len(self.networks))

    def passes(self, data: np.ndarray) -> torch.Tensor:
        """Probabilities (pass, class), or numbers (pass, 1), of a scan (channel, *space)."""
        count = self.settings.passes
        rows = []
        with inference_mode(self.fabric):
            for number, model in enumerate(self.networks):
                scan = torch.from_numpy(data)[None]
                image = self.fabric.to_device(resize(scan, model.input_size))
                axes = model.mirror_axes if self.settings.mirror else ()
                if count == 1:
                    rows.append(mean_of_classes(model.probabilities, image, axes))
                    continue
                # passes are numbered across the networks: no two have the same masks
                passes = range(number * count, (number + 1) * count)
                rows.append(
                    run_mirrored_class_passes(
                        model.network, self._masks[number], image, passes, axes
                    )
                )
            return torch.cat(rows).cpu()


class ScanClassifier:
    """Classifiers on their device, ready to classify one scan after the other.

    Args:
        models: the leading one first; its recipe prepares the scans.
        settings: of passes and votes.
        fabric: device and arithmetic.

    Raises:
        UsageError: dropout is asked for and a network has no activation to drop units after.
    """

    def __init__(self, models: Sequence[TrainedClassifier], settings: PassSettings, fabric: Fabric):
        self.models = models
        self.settings = settings
        self._passes = ScanPasses(models, settings, fabric)

    @property
    def votes(self) -> bool:
        """Whether several predictions of each scan vote."""
        return self._passes.votes

    def classify(self, prepared: PreparedScan) -> ClassVotes:
        """Classify one prepared scan by all passes of all networks."""
        passes = self._passes.passes(prepared.data)
        model = self.models[0]
        return count_class_votes(
            passes, model.network.ordinal, model.classes, self.settings, model.names
        )
