"""What predictions of either kind of network have in common: a folder, passes and tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.split import read_split_if_present
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.ops.regions import Regions
from selfvox.prediction.output_folder import OutputFolder
from selfvox.prediction.scan_check import ScanCheck
from selfvox.prediction.scan_loop import ScanWork
from selfvox.prediction.used_scans import UsedScans, used_scans
from selfvox.prediction.work_record import Workplace
from selfvox.runs.card import DropoutRates
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Predict
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


def scans_used(settings: Predict) -> list[UsedScans]:
    """Which scans trained each network, as far as its run says so."""
    used = []
    for run in (settings.run, *settings.ensemble):
        try:
            used.append(used_scans(run, read_split_if_present(run / "split.json")))
        except DataError as error:
            echo(f"{error}; scans that trained the run are not recognised")
    return used


def workplace_of(settings: Predict, fabric: Fabric) -> Workplace:
    """Where the work is done, for the records of the cases."""
    names = [run.resolve().name for run in (settings.run, *settings.ensemble)]
    return Workplace(", ".join(names), fabric.device)


def precision_of(fabric: Fabric) -> str:
    """The arithmetic, for the card of the predictions."""
    return str(fabric.strategy.precision.precision)
