"""The files and tables that `predict` writes, for either kind of network."""

from __future__ import annotations

import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.split import read_split_if_present
from selfvox.data.sources import Case
from selfvox.errors import DataError, UsageError
from selfvox.ops.regions import Regions
from selfvox.prediction import classify, output_folder, segment
from selfvox.prediction.class_table import write_class_table
from selfvox.prediction.classify import ScanClassifier
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.scan_check import ScanCheck
from selfvox.prediction.scan_loop import ScanWork
from selfvox.prediction.segment import ScanSegmenter
from selfvox.prediction.segmentation_result import VotedScan
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedSegmenter,
    load_model,
    warn_if_unfinished,
)
from selfvox.prediction.used_scans import UsedScans, used_scans
from selfvox.prediction.work_record import Workplace
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
    check: ScanCheck  # compares a scan with those of the training
    classes: Mapping[int, str]
    regions: Regions | None
    card: Mapping[str, Any]  # network and settings that predictions depend on
    passes: PassSettings
    trained_dropout: Sequence[DropoutRates | None]  # of each network
    result: Path  # what the predictions are found in
    truth: str  # placeholder for what they can be evaluated against
    workplace: Workplace

    @abstractmethod
    def predict_case(self, work: ScanWork) -> None:
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
    for run in runs:
        warn_if_unfinished(run)
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
        self._announced = False
        self.segmenter = ScanSegmenter(models, passes, settings.overlap, fabric)
        self.workplace = _workplace(settings, fabric)
        endings = maps.map_files(passes.maps)
        self.folder = OutputFolder(
            settings.out,
            settings.probabilities,
            endings,
            used=_used_scans(settings),
            label_ending=f".{settings.format}",
        )
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = model.recipe
        self.check = ScanCheck.from_verb(model.scans, settings)
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
        if settings.format != Predict.format:
            # of the default, cards of earlier versions say nothing
            card["label_format"] = settings.format
        self.card = card

    def predict_case(self, work: ScanWork) -> None:
        """Write the label, and the probabilities and maps that were asked for."""
        folder = self.folder
        case = work.case
        image = work.image
        comparison = self.check.compare(case, image, work.prepared)
        self._announce_sizes(image.shape, work.prepared.data.shape[1:])
        result = self.segmenter.segment(
            work.prepared, folder.probabilities, folder.path, work.report
        )
        if result.probabilities is not None:
            images.write_map(folder.probability_file(case), result.probabilities, image)
        images.write_label(folder.label_file(case), result.label, image)
        for ending, path in folder.map_files(case).items():
            images.write_compact_map(path, result.maps[ending], image)
        if result.maps:
            assert result.voted is not None
            self._draw_maps(case, image, work.prepared, result.voted)
        facts = self.workplace.facts_with_costs(work.began)
        folder.record(
            case,
            facts,
            review=result.review,
            notes=comparison.notes,
            distance=comparison.distance,
        )

    def _announce_sizes(self, shape: Sequence[int], prepared_shape: Sequence[int]) -> None:
        """Print once how large the files of a scan are, besides the label."""
        if self._announced or not (self.passes.maps or self.folder.probabilities):
            return
        self._announced = True
        model = self.segmenter.models[0]
        outputs = len(model.outputs)
        regions = 0 if model.trained_on_regions else len(model.regions or {})
        voxels = math.prod(shape)
        sizes = []
        if self.passes.maps:
            # volumes are stored in two bytes, pictures in four
            bytes_each = 2 if len(shape) == 3 else 4
            layers = maps.count_layers(self.passes.maps, outputs, regions)
            sizes.append(f"maps of {_megabytes(bytes_each * layers * voxels)}")
        if self.folder.probabilities:
            sizes.append(f"probabilities of {_megabytes(4 * outputs * voxels)}")
        if any(maps.MAPS[name].stores_passes for name in self.passes.maps):
            passes = self.passes.passes * len(self.segmenter.models)
            stored = passes * outputs * math.prod(prepared_shape)
            sizes.append(f"for a while a file of all passes, {_megabytes(stored)}")
        edges = " x ".join(map(str, shape))
        echo(f"a scan of {edges} voxels takes, before compression: {', '.join(sizes)}")

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
        passes = self.passes.passes
        for line in (
            review.describe_stability(reviews.values(), passes),
            review.describe_precision(reviews.values(), passes),
        ):
            if line is not None:
                echo(line)

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
        self.workplace = _workplace(settings, fabric)
        self.folder = OutputFolder(settings.out, answers_only=True, used=_used_scans(settings))
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = model.recipe
        self.check = ScanCheck.from_verb(model.scans, settings)
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

    def predict_case(self, work: ScanWork) -> None:
        """Record the class."""
        comparison = self.check.compare(work.case, work.image, work.prepared)
        votes = self.classifier.classify(work.prepared)
        facts = self.workplace.facts_with_costs(work.began)
        answer = votes.to_json(self.classifier.votes)
        self.folder.record(
            work.case,
            facts,
            answer=answer,
            notes=comparison.notes,
            distance=comparison.distance,
        )

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write the classes, and which of them to review first, if several passes voted."""
        names = list(self.classes.values())
        answers = self.folder.answers()
        write_class_table(self.result, cases, answers, names, self.classifier.votes)
        if self.classifier.votes and answers:
            table = self.folder.path / output_folder.REVIEW_TABLE
            class_votes.write_class_review(table, answers, names)
            echo(f"review these first: {table}")
            # passes of several networks are no draws of one kind
            if len(self.classifier.models) == 1:
                echo(class_votes.describe_stability(answers, self.passes.passes))

    def outputs(self, cases: Sequence[Case]) -> list[Path]:
        """The table."""
        return [self.result]


def _used_scans(settings: Predict) -> list[UsedScans]:
    """Which scans trained each network, as far as its run says so."""
    used = []
    for run in (settings.run, *settings.ensemble):
        try:
            used.append(used_scans(run, read_split_if_present(run / "split.json")))
        except DataError as error:
            echo(f"{error}; scans that trained the run are not recognised")
    return used


def _workplace(settings: Predict, fabric: Fabric) -> Workplace:
    names = [run.resolve().name for run in (settings.run, *settings.ensemble)]
    return Workplace(", ".join(names), fabric.device)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


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
