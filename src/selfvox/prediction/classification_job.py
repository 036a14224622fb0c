"""Classify whole scans into a folder: one table for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from selfvox.data.sources import Case
from selfvox.prediction import output_folder
from selfvox.prediction.class_table import write_class_table
from selfvox.prediction.classify import ScanClassifier
from selfvox.prediction.scan_loop import ScanWork
from selfvox.prediction.trained_model import TrainedClassifier
from selfvox.prediction.whole_scan_job import WholeScanJob
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import class_votes
from selfvox.uncertainty.calibration_file import note_other_passes, read_calibrations
from selfvox.uncertainty.class_calibration import ClassCalibration, EnsembleClassCalibration
from selfvox.uncertainty.ensemble import PassSettings


class ClassificationJob(WholeScanJob):
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
        super().__init__(models, passes, settings, fabric, output_folder.CLASS_TABLE)
        self.classifier = ScanClassifier(models, passes, fabric)
        values = map(int, models[0].classes)
        self.classes = dict(zip(values, models[0].names, strict=True))
        self.card = {**self.card, "ordinal": models[0].network.ordinal}

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
            is_unlike=comparison.is_far,
        )

    def write_tables(self, cases: Sequence[Case]) -> None:
        """Write the classes, and which of them to review first, if several passes voted."""
        model = self.classifier.models[0]
        answers = self.folder.answers()
        calibration = self._calibration() if answers else None
        write_class_table(
            self.result,
            cases,
            answers,
            model.classes,
            self.classifier.votes,
            calibration,
            model.names,
        )
        if self.classifier.votes and answers:
            table = self.folder.path / output_folder.REVIEW_TABLE
            class_votes.write_class_review(table, answers, model.classes, model.names)
            echo(f"review these first: {table}")
            # passes of several networks are no draws of one kind
            if len(self.classifier.models) == 1:
                echo(class_votes.describe_stability(answers, self.passes.passes))

    def _calibration(self) -> EnsembleClassCalibration | None:
        """The calibrations of all networks; prints why there are none, where there are none."""
        models = self.classifier.models
        calibrations = read_calibrations(
            self.runs,
            ClassCalibration,
            lambda made, number: made.mismatch(self.passes, models[number].sha256),
            "no sets of classes and no calibrated probabilities",
        )
        if calibrations is None:
            return None
        note_other_passes(calibrations, self.passes)
        calibration = EnsembleClassCalibration(calibrations, models[0].network.ordinal)
        echo(
            f"sets of classes contain the true class of {100 * calibration.level:.0f} % of such "
            f"scans (calibrated on {calibration.origin})"
        )
        return calibration
