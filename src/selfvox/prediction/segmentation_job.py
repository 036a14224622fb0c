"""Segment scans into a folder: the label of each, and probabilities and maps on request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.code_table import read_code_table
from selfvox.data.formats import image as images
from selfvox.data.formats.dicom_map import write_parametric_map
from selfvox.data.formats.dicom_segmentation import Code, write_segmentation
from selfvox.data.formats.image import Image
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.prediction import output_folder
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.output_folder import CHANNEL_NAMES, OutputFolder
from selfvox.prediction.prediction_job import (
    PredictionJob,
    precision_of,
    scans_used,
    workplace_of,
)
from selfvox.prediction.scan_check import ScanCheck
from selfvox.prediction.scan_loop import ScanWork
from selfvox.prediction.scan_segmenter import ScanSegmenter
from selfvox.prediction.segmentation_result import VotedScan
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import ensemble, maps, review, review_table
from selfvox.uncertainty.calibration import Calibration
from selfvox.uncertainty.calibration_file import is_calibrated, note_other_passes, read_calibrations
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.ensemble_calibration import EnsembleCalibration


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
        self._runs = (settings.run, *settings.ensemble)
        self._announced = False
        self.segmenter = ScanSegmenter(models, passes, settings.overlap, fabric)
        self.workplace = workplace_of(settings, fabric)
        endings = maps.map_files(passes.maps)
        files = CaseFiles(
            settings.out,
            settings.probabilities,
            endings,
            label_ending=f".{settings.format}",
            dicom=settings.dicom is not None,
        )
        self.folder = OutputFolder(files, scans_used(settings))
        self._is_labelmap = settings.dicom == "labelmap"
        self._codes: dict[str, Code] = {}
        if settings.codes is not None:
            self._codes = read_code_table(settings.codes, model.classes.values())
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = model.recipe
        self.check = ScanCheck.from_verb([network.scans for network in models], settings)
        self.classes = model.classes
        self.regions = model.regions
        self.result = settings.out
        self.truth = "TRUTH/"
        card: dict[str, Any] = {
            "network_sha256": model.sha256,
            CHANNEL_NAMES: list(model.recipe.channel_names),
            "overlap": settings.overlap,
            "precision": precision_of(fabric),
        }
        card |= ensemble.passes_card(passes, [network.sha256 for network in models])
        if self.segmenter.votes:
            card["maps"] = list(passes.maps)
        if model.trained_on_regions:
            card["trained_on"] = "regions"
        if settings.format != Predict.format:
            # of the default, cards of earlier versions say nothing
            card["label_format"] = settings.format
        if self._is_labelmap:
            card["dicom"] = settings.dicom
        if self._codes:
            card["codes"] = {name: list(code) for name, code in self._codes.items()}
        self.card = card

    def predict_case(self, work: ScanWork) -> None:
        """Write the label, and the probabilities and maps that were asked for."""
        folder = self.folder
        case = work.case
        image = work.image
        comparison = self.check.compare(case, image, work.prepared)
        self._announce_sizes(image.shape, work.prepared.data.shape[1:])
        result = self.segmenter.segment(
            work.prepared, folder.files.probabilities, folder.path, work.report
        )
        if result.probabilities is not None:
            images.write_map(folder.files.probability_file(case), result.probabilities, image)
        if folder.files.dicom_file(case) is not None:
            self._write_dicom(case, image, result.label, result.maps)
        for ending, path in folder.files.map_files(case).items():
            images.write_compact_map(path, result.maps[ending], image)
        if result.maps:
            assert result.voted is not None
            self._draw_maps(case, image, work.prepared, result.voted)
        # last of the files: a scan that is refused for one of the others has no label
        images.write_label(folder.files.label_file(case), result.label, image, self.classes)
        facts = self.workplace.facts_with_costs(work.began)
        folder.record(
            case,
            facts,
            review=result.review,
            notes=comparison.notes,
            distance=comparison.distance,
            is_unlike=comparison.is_far,
        )

    def _write_dicom(
        self, case: Case, image: Image, label: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> None:
        """Write the label and the maps of a DICOM series as DICOM objects."""
        path = self.folder.files.dicom_file(case)
        assert path is not None
        write_segmentation(
            path, label, image, case.images, self.classes, self._is_labelmap, self._codes
        )
        parts = [*self.segmenter.models[0].output_names, *(self.regions or {})]
        for ending, file in self.folder.files.dicom_map_files(case).items():
            of_map = values[ending]
            write_parametric_map(file, of_map, image, case.images, ending, parts[: len(of_map)])

    def _announce_sizes(self, shape: Sequence[int], prepared_shape: Sequence[int]) -> None:
        """Print once how large the files of a scan are, besides the label."""
        if self._announced or not (self.passes.maps or self.folder.files.probabilities):
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
        if self.folder.files.probabilities:
            sizes.append(f"probabilities of {_megabytes(4 * outputs * voxels)}")
        if any(maps.MAPS[name].stores_passes for name in self.passes.maps):
            passes = self.passes.passes * len(self.segmenter.models)
            stored = passes * outputs * math.prod(prepared_shape)
            sizes.append(f"for a while a file of all passes, {_megabytes(stored)}")
        edges = " x ".join(map(str, shape))
        echo(f"a scan of {edges} voxels takes, before compression: {', '.join(sizes)}")

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write which predictions to review first, if several passes voted."""
        if not self.segmenter.votes:
            self._suggest_passes()
            return
        reviews = self.folder.reviews()
        if reviews:
            table = self.folder.path / output_folder.REVIEW_TABLE
            calibration = self._calibration()
            review_table.write_review(table, reviews, self.classes, calibration)
            if calibration is not None:
                for line in review_table.describe_estimates(reviews, self.classes, calibration):
                    echo(line)
            echo(f"review these first: {table}")
            self._describe_precision(reviews)

    def _suggest_passes(self) -> None:
        """Name what several passes would add."""
        gain = "names the predictions to review first"
        if is_calibrated(self._runs[0]):
            gain += ", with the predicted Dice of each class and intervals of the volumes"
        echo(f"a single pass does not say how far to trust it: --passes 20 {gain}")

    def _calibration(self) -> EnsembleCalibration | None:
        """The calibrations of all networks; prints why there are none, where there are none."""
        lost = "no predicted Dice and no intervals of the volumes"
        if self.passes.passes == 1:
            echo(f"{lost}, since each network predicts once; give --passes 20 too")
            return None
        models = self.segmenter.models
        calibrations = read_calibrations(
            self._runs,
            Calibration,
            lambda made, number: made.mismatch(
                self.passes, models[number].sha256, self.segmenter.overlap
            ),
            lost,
        )
        if calibrations is None:
            return None
        note_other_passes(calibrations, self.passes)
        return EnsembleCalibration(calibrations)

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
        return [self.folder.files.label_file(case) for case in cases]

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
        maps.draw_maps(self.folder.files.map_picture(case), picture)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
