"""Segment one image in memory, and check which networks can vote together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfvox.data.formats.image import Image
from selfvox.prediction.scan_check import compare_scan
from selfvox.prediction.scan_segmenter import OVERLAP, ScanSegmenter
from selfvox.prediction.segmentation_result import Segmentation
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.runs.device import Fabric, make_fabric
from selfvox.uncertainty import ensemble
from selfvox.uncertainty.ensemble import PassSettings


def predict_image(
    models: TrainedSegmenter | Sequence[TrainedSegmenter],
    image: Image,
    settings: PassSettings | None = None,
    *,
    overlap: float = OVERLAP,
    probabilities: bool = True,
    fabric: Fabric | None = None,
    force: bool = False,
) -> Segmentation:
    """Segment one image that is in memory.

    Args:
        models: one network, or several that vote together.
        image: with its geometry, as it was read: the recipe of the run is applied here.
        settings: of passes and votes; default: one plain prediction per network.
        overlap: share by which neighbouring windows overlap.
        probabilities: whether the result has probabilities too.
        fabric: device and arithmetic; default: a GPU where there is one, in bf16 where the
            processor has it.
        force: also an image that is unlike those that the run was trained on.

    Raises:
        DataError: the image does not fit the recipe of the run, or is unlike its scans.
        UsageError: the networks cannot vote together, or not in this way.
    """
    models = [models] if isinstance(models, TrainedSegmenter) else list(models)
    settings = settings or PassSettings()
    check_vote(models, settings)
    segmenter = ScanSegmenter(models, settings, overlap, fabric or make_fabric("auto", 1, "auto"))
    prepared = models[0].recipe.apply(image)
    compare_scan([model.scans for model in models], image, prepared, force=force)
    return segmenter.segment(prepared, probabilities)


def check_vote(
    models: Sequence[TrainedSegmenter], settings: PassSettings, runs: Sequence[Path] | None = None
) -> None:
    """Refuse networks that cannot vote together, and votes that their outputs do not allow.

    Args:
        models: the leading one first.
        settings: of passes and votes.
        runs: their folders, for the message.

    Raises:
        UsageError: names the first such run or setting.
    """
    facts = [
        {
            "list of classes": model.classes,
            "choice of classes or regions to train on": model.outputs,
            "recipe": model.recipe,
        }
        for model in models
    ]
    names = runs or [Path(f"model {number}") for number in range(len(models))]
    ensemble.check_compatible(names, facts)
    axes = [model.mirror_axes for model in models]
    ensemble.check_mirror(settings, dict(zip(names, axes, strict=True)))
    ensemble.check_vote(settings, models[0].output_names, models[0].trained_on_regions)
