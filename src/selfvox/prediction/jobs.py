"""Load the networks of a prediction; their kind decides what is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfvox.errors import UsageError
from selfvox.prediction import classify, regress, segment
from selfvox.prediction.classification_job import ClassificationJob
from selfvox.prediction.load_model import load_model, warn_if_unfinished
from selfvox.prediction.prediction_job import PredictionJob
from selfvox.prediction.regression_job import RegressionJob
from selfvox.prediction.segmentation_job import SegmentationJob
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedModel,
    TrainedRegressor,
    TrainedSegmenter,
)
from selfvox.runs.device import make_fabric
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import ensemble
from selfvox.uncertainty.ensemble import PassSettings


def load_job(settings: Predict) -> PredictionJob:
    """Load the networks of a prediction; refuse those that cannot vote together.

    Raises:
        UsageError: they cannot vote together, or not in this way.
        WeightsError: a run has no intact network.
    """
    runs = [settings.run, *settings.ensemble]
    models = [load_model(run) for run in runs]
    for run in runs:
        warn_if_unfinished(run)
    passes = PassSettings.from_verb(settings, models[0].dropout)
    segmenters = [model for model in models if isinstance(model, TrainedSegmenter)]
    classifiers = [model for model in models if isinstance(model, TrainedClassifier)]
    regressors = [model for model in models if isinstance(model, TrainedRegressor)]
    _refuse_mixed_kinds(runs, models)
    if segmenters:
        segment.check_vote(segmenters, passes, runs)
    elif regressors:
        regress.check_vote(regressors, passes, runs)
    else:
        classify.check_vote(classifiers, passes, runs)
    ensemble.describe_mirror(passes, models[0].mirror_axes)
    fabric = make_fabric(settings.device, 1, settings.precision)
    if segmenters:
        return SegmentationJob(segmenters, passes, settings, fabric)
    if regressors:
        return RegressionJob(regressors, passes, settings, fabric)
    return ClassificationJob(classifiers, passes, settings, fabric)


def _refuse_mixed_kinds(runs: Sequence[Path], models: Sequence[TrainedModel]) -> None:
    """Refuse to let networks of whole scans and of voxels, or of numbers, vote together."""
    for run, model in zip(runs[1:], models[1:], strict=True):
        if type(model) is not type(models[0]):
            raise UsageError(
                f"{run}: {_verb(model)}, where {runs[0]} {_verb(models[0])}; "
                "leave it out of --ensemble"
            )


def _verb(model: TrainedModel) -> str:
    if isinstance(model, TrainedRegressor):
        return "predicts a number of whole scans"
    return "segments" if isinstance(model, TrainedSegmenter) else "classifies whole scans"
