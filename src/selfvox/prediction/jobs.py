"""The files and tables that `predict` writes, for either kind of network."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError
from selfvox.ops.regions import Regions
from selfvox.prediction import classify, output_folder, segment
from selfvox.prediction.class_table import write_class_table
from selfvox.prediction.classify import ScanClassifier
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.segment import ScanSegmenter, ShareReceiver, VotedScan
from selfvox.prediction.trained_model import TrainedClassifier, TrainedSegmenter, load_model
from selfvox.runs.card import DropoutRates
from selfvox.runs.device import Fabric, make_fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import class_votes, ensemble, maps, review, review_table
from selfvox.uncertainty.calibration import Calibration, read_calibration
from selfvox.uncertainty.ensemble import PassSettings


class PredictionJob(ABC):
    """Networks, their settings, and the folder of their predictions."""

    folder: OutputFolder
    recipe: Recipe  # of the leading network: prepares the scans
    classes: Mapping[int, str]
    regions: Regions | None
    card: Mapping[str, Any]  # network and settings that predictions depend on
    passes: PassSettings
    trained_dropout: Sequence[DropoutRates | None]  # of each network
    result: Path  # what the predictions are found in
    truth: str  # placeholder for what they can be evaluated against

    @abstractmethod
    def predict_case(
        self, case: Case, image: Image, prepared: PreparedScan, report: ShareReceiver
    ) -> None:
        """Predict a case and write the prediction, its record last."""

    @abstractmethod
    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write the tables over all cases that are predicted."""

    @abstractmethod
    def outputs(self, cases: Sequence[Case]) -> list[Path]:
        """The files of the predictions."""


def load_job(settings: Predict) -> PredictionJob:
    """Load the networks of a prediction; refuse those that cannot vote together.

    Raises:
        UsageError: they cannot vote together, or not in this way.
        WeightsError: a run has no intact network.
    """
    runs = [settings.run, *settings.ensemble]
    models = [load_model(run) for run in runs]
    passes = PassSettings.from_verb(settings, models[0].dropout)
    segmenters = [model for model in models if isinstance(model, TrainedSegmenter)]
    classifiers = [model for model in models if isinstance(model, TrainedClassifier)]
    if segmenters and classifiers:
        _refuse_mixed_kinds(runs, models)
    if segmenters:
        segment.check_vote(segmenters, passes, runs)
    else:
        classify.check_vote(classifiers, passes, runs)
    ensemble.describe_mirror(passes, models[0].mirror_axes)
    fabric = make_fabric(settings.device, 1, settings.precision)
    if segmenters:
        return SegmentationJob(segmenters, passes, settings, fabric)
    return ClassificationJob(classifiers, passes, settings, fabric)


class SegmentationJob(PredictionJob):
    """Segments scans: a file of class numbers for each, and more on request.

    Args:
        models: the leading one first.
        passes: settings of passes and votes.
        settings: of the verb.
        fabric: device and arithmetic.
    """

    def __init__(
        self,
        models: Sequence[TrainedSegmenter],
        passes: PassSettings,
        settings: Predict,
        fabric: Fabric,
    ):
        model = models[0]
        self._run = settings.run
        self.segmenter = ScanSegmenter(models, passes, settings.overlap, fabric)
        endings = maps.map_files(passes.maps)
        self.folder = OutputFolder(settings.out, settings.probabilities, endings)
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = model.recipe
        self.classes = model.classes
        self.regions = model.regions
        self.result = settings.out
        self.truth = "TRUTH/"
        card: dict[str, Any] = {
            "network_sha256": model.sha256,
            "overlap": settings.overlap,
            "precision": _precision(fabric),
        }
        card |= ensemble.passes_card(passes, [network.sha256 for network in models])
        if self.segmenter.votes:
            card["maps"] = list(passes.maps)
        if model.trained_on_regions:
            card["trained_on"] = "regions"
        self.card = card

    def predict_case(
        self, case: Case, image: Image, prepared: PreparedScan, report: ShareReceiver
    ) -> None:
        """Write the label, and the probabilities and maps that were asked for."""
        folder = self.folder
        result = self.segmenter.segment(prepared, folder.probabilities, folder.path, report)
        if result.probabilities is not None:
            images.write_map(folder.probability_file(case), result.probabilities, image)
        images.write_label(folder.label_file(case), result.label, image)
        for ending, path in folder.map_files(case).items():
            images.write_map(path, result.maps[ending], image)
        if result.maps:
            assert result.voted is not None
            self._draw_maps(case, image, prepared, result.voted)
        folder.record(case, review=result.review, notes=image.notes)

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write which predictions to review first, if several passes voted."""
        reviews = self.folder.reviews()
        if self.segmenter.votes and reviews:
            table = self.folder.path / output_folder.REVIEW_TABLE
            calibration = self._calibration()
            review_table.write_review(table, reviews, self.classes, calibration)
            if calibration is not None:
                for line in review_table.describe_estimates(reviews, self.classes, calibration):
                    echo(line)
            echo(f"review these first: {table}")
            self._describe_precision(reviews)

    def _calibration(self) -> Calibration | None:
        """The calibration of the run, if it is of such passes; prints why there is none."""
        calibration = read_calibration(self._run)
        reason = f"{self._run} has no calibration"
        if calibration is not None:
            sha256s = [network.sha256 for network in self.segmenter.models]
            mismatch = calibration.mismatch(self.passes, sha256s, self.segmenter.overlap)
            if mismatch is None:
                self._note_other_passes(calibration)
                return calibration
            reason = mismatch
        echo(
            f"no predicted Dice and no intervals of the volumes, since {reason}; "
            f"`selfvox calibrate {shlex.quote(str(self._run))}` makes one"
        )
        return None

    def _note_other_passes(self, calibration: Calibration) -> None:
        """Print that the promise is of other passes, where it is."""
        made_with = (calibration.passes, calibration.seed)
        if made_with != (self.passes.passes, self.passes.dropout.seed):
            echo(
                f"calibrated with {made_with[0]} passes of seed {made_with[1]}: others may keep "
                "the promised level less exactly"
            )

    def _describe_precision(self, reviews: Mapping[str, Mapping[str, Any]]) -> None:
        """Print how many passes are enough; those of several networks are no draws of one kind."""
        if len(self.segmenter.models) > 1:
            return
        precision = review.describe_precision(reviews.values(), self.passes.passes)
        if precision is not None:
            echo(precision)

    def outputs(self, cases: Sequence[Case]) -> list[Path]:
        """The label of each case, in the order of the cases."""
        return [self.folder.label_file(case) for case in cases]

    def _draw_maps(
        self, case: Case, image: Image, prepared: PreparedScan, voted: VotedScan
    ) -> None:
        """Draw the maps over the scan, with the true label where the case has one."""
        model = self.segmenter.models[0]
        labels = {"vote": voted.label}
        if case.label is not None:
            try:
                truth = images.read_label(case.label, image)
                labels["truth"] = model.recipe.apply_label(truth, prepared.geometry)
            except DataError as error:
                echo(f"{error}; drawn without it")
        parts = list(model.outputs)
        if not model.trained_on_regions:
            parts += (model.regions or {}).items()
        overlays = {}
        percentiles: list[np.ndarray] = []
        for ending, (values, is_probability) in voted.maps.items():
            if is_probability:
                percentiles.append(values)
            else:
                # of a map for each class, the sum
                has_classes = values.ndim > voted.label.ndim
                overlays[ending] = values.sum(0) if has_classes else values
        picture = maps.MapPicture(
            image=prepared.data[0],
            labels=labels,
            parts=parts,
            overlays=overlays,
            percentiles=percentiles or None,
            spacing_mm=prepared.spacing_mm,
        )
        maps.draw_maps(self.folder.map_picture(case), picture)


class ClassificationJob(PredictionJob):
    """Classifies whole scans: one table for all of them.

    Args:
        models: the leading one first.
        passes: settings of passes and votes.
        settings: of the verb.
        fabric: device and arithmetic.
    """

    def __init__(
        self,
        models: Sequence[TrainedClassifier],
        passes: PassSettings,
        settings: Predict,
        fabric: Fabric,
    ):
        model = models[0]
        self.classifier = ScanClassifier(models, passes, fabric)
        self.folder = OutputFolder(settings.out, answers_only=True)
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = model.recipe
        self.classes = dict(enumerate(model.classes))
        self.regions = None
        self.result = settings.out / output_folder.CLASS_TABLE
        self.truth = "TRUTH.csv"
        self.card = {
            "network_sha256": model.sha256,
            "ordinal": model.network.ordinal,
            "precision": _precision(fabric),
            **ensemble.passes_card(passes, [network.sha256 for network in models]),
        }

    def predict_case(
        self, case: Case, image: Image, prepared: PreparedScan, report: ShareReceiver
    ) -> None:
        """Record the class."""
        votes = self.classifier.classify(prepared)
        self.folder.record(case, answer=votes.to_json(self.classifier.votes), notes=image.notes)

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write the classes, and which of them to review first, if several passes voted."""
        names = list(self.classes.values())
        answers = self.folder.answers()
        write_class_table(self.result, cases, answers, names, self.classifier.votes)
        if self.classifier.votes and answers:
            table = self.folder.path / output_folder.REVIEW_TABLE
            class_votes.write_class_review(table, answers, names)
            echo(f"review these first: {table}")

    def outputs(self, cases: Sequence[Case]) -> list[Path]:
        """The table."""
        return [self.result]


def _precision(fabric: Fabric) -> str:
    return str(fabric.strategy.precision.precision)


def _refuse_mixed_kinds(
    runs: Sequence[Path], models: Sequence[TrainedSegmenter | TrainedClassifier]
) -> None:
    """Refuse to let networks of whole scans and of voxels vote together."""
    for run, model in zip(runs[1:], models[1:], strict=True):
        if type(model) is not type(models[0]):
            raise UsageError(
                f"{run}: {_verb(model)}, where {runs[0]} {_verb(models[0])}; "
                "leave it out of --ensemble"
            )


def _verb(model: TrainedSegmenter | TrainedClassifier) -> str:
    return "segments" if isinstance(model, TrainedSegmenter) else "classifies whole scans"
