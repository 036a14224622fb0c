"""The table of a calibration: what was predicted of held-out subjects."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from selfvox.prediction.measure_segmentations import _write_measures
from selfvox.uncertainty.calibration import Measure, held_out_dice


def measures(rng, dice):
    """Measures of eight subjects, with agreements that have little to do with the Dice."""
    return [
        Measure(
            case=f"scan-{number}",
            subject=f"sub-{number}",
            agreement=rng.uniform(0.6, 1.0),
            volume=10.0,
            spread=1.0,
            dice=dice + rng.normal(0, 0.05),
            true_volume=11.0,
        )
        for number in range(8)
    ]


def test_dice_of_classes_and_of_regions_is_predicted_apart_as_it_is_calibrated(tmp_path):
    rng = np.random.default_rng(0)
    of_classes = {"1": measures(rng, 0.5), "2": measures(rng, 0.7)}
    of_regions = {"1": measures(rng, 0.9)}  # a region that is called like the number of a class
    job = SimpleNamespace(
        table=tmp_path / "measures.csv",
        network_of={f"scan-{number}": 0 for number in range(8)},
    )
    _write_measures(job, of_classes, of_regions, {"1": "dark", "2": "bright"})
    with job.table.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 3 * 8
    for name, expected in (
        ("dark", held_out_dice(of_classes)["1"]),
        ("bright", held_out_dice(of_classes)["2"]),
        ("1", held_out_dice(of_regions)["1"]),
    ):
        of_name = [float(row["predicted_dice"]) for row in rows if row["name"] == name]
        assert of_name == pytest.approx(expected, abs=1e-6)
