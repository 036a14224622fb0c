"""What predictions of whole scans have in common: their answers are one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfvox.data.sources import Case
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.output_folder import CHANNEL_NAMES, OutputFolder
from selfvox.prediction.prediction_job import (
    PredictionJob,
    precision_of,
    scans_used,
    workplace_of,
)
from selfvox.prediction.scan_check import ScanCheck
from selfvox.prediction.trained_model import TrainedClassifier, TrainedRegressor
from selfvox.runs.device import Fabric
from selfvox.settings.verbs import Predict
from selfvox.uncertainty import ensemble
from selfvox.uncertainty.ensemble import PassSettings


class WholeScanJob(PredictionJob):
    """Predicts an answer for each scan: one table for all of them.

    Args:
        models: the leading one first.
        passes: settings of passes and votes.
        settings: of the verb.
        fabric: device and arithmetic.
        table: name of the table.
    """

    regions = None
    truth = "TRUTH.csv"

    def __init__(
        self,
        models: Sequence[TrainedClassifier | TrainedRegressor],
        passes: PassSettings,
        settings: Predict,
        fabric: Fabric,
        table: str,
    ):
        self.runs = (settings.run, *settings.ensemble)
        self.workplace = workplace_of(settings, fabric)
        self.folder = OutputFolder(CaseFiles(settings.out, answers_only=True), scans_used(settings))
        self.passes = passes
        self.trained_dropout = [network.dropout for network in models]
        self.recipe = models[0].recipe
        self.check = ScanCheck.from_verb([network.scans for network in models], settings)
        self.result = settings.out / table
        self.card = {
            "network_sha256": models[0].sha256,
            CHANNEL_NAMES: list(self.recipe.channel_names),
            "precision": precision_of(fabric),
            **ensemble.passes_card(passes, [network.sha256 for network in models]),
        }

    def outputs(self, cases: Sequence[Case]) -> list[Path]:
        """The table."""
        return [self.result]
