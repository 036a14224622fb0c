"""The verb `calibrate`: what the predictions of a run say of the truth."""

from __future__ import annotations

from pathlib import Path

from selfvox.prediction.calibrate_run import calibrate_run
from selfvox.settings.verbs import Calibrate


def calibrate(settings: Calibrate) -> Path:
    """Predict labelled scans, and fit what the predictions say of the truth.

    Returns:
        The file `calibration.json` next to the weights, which `predict` reads; of a folder of
        folds, the table of what was measured.

    Raises:
        UsageError: there are too few subjects, or the settings do not fit the network.
        DataError: a scan or its truth cannot be used.
        WeightsError: the run has no intact network.
    """
    return calibrate_run(settings)
