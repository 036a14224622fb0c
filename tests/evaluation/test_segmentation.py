"""Scores of masks and of cases, apart from the files that they are read from."""

import math

import numpy as np
import pytest

from selfvox.evaluation.segmentation import SCORES, MaskPair, mean_dice


@pytest.mark.parametrize("spacing_mm", [(1.0, 2.0, 3.0), (1.0, 1.0)], ids=["volume", "picture"])
def test_the_score_of_an_empty_class_is_that_of_two_empty_masks(spacing_mm):
    empty = np.zeros((4,) * len(spacing_mm), bool)
    masks = MaskPair(empty, empty, spacing_mm)
    for score in SCORES:
        assert score.compute(masks) == pytest.approx(score.empty, nan_ok=True)


@pytest.mark.parametrize(
    ("spacing_mm", "voxel", "columns"),
    [
        ((1.0, 2.0, 3.0), 0.006, ("predicted_volume_ml", "true_volume_ml")),
        ((1.0, 1.0), 1, ("predicted_area_px", "true_area_px")),
    ],
)
def test_volumes_are_in_ml_and_areas_in_pixels(spacing_mm, voxel, columns):
    predicted = np.zeros((4,) * len(spacing_mm), bool)
    predicted[1] = True
    true = np.zeros_like(predicted)
    true[0, 0] = True
    masks = MaskPair(predicted, true, spacing_mm)
    values = {score.columns[len(spacing_mm)]: score.compute(masks) for score in SCORES}
    assert [values[column] for column in columns] == pytest.approx(
        [predicted.sum() * voxel, true.sum() * voxel]
    )


def test_the_mean_dice_of_a_case_is_over_its_classes_or_over_its_regions():
    rows = [
        {"case": "a", "class": 1, "dice": 0.5},
        {"case": "a", "class": 2, "dice": 0.7},
        {"case": "a", "class": "1+2", "dice": 0.9},
        {"case": "b", "class": "1+2", "dice": 0.4},
    ]
    classes = mean_dice(rows, of_regions=False)
    assert classes["a"] == pytest.approx(0.6)
    assert math.isnan(classes["b"])
    assert mean_dice(rows, of_regions=True) == pytest.approx({"a": 0.9, "b": 0.4})
