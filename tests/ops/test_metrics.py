"""Scores against closed forms, brute force and MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from sklearn.metrics import roc_auc_score

from selfvox.ops import metrics
from selfvox.ops.metrics import dice_per_class, surface_distances, volume_ml


def box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def surface(mask):
    """Centres of the voxels with a face neighbour outside; a loop over all neighbours."""
    actual = []
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = voxel.copy()
                neighbour[axis] += step
                inside = all(
                    0 <= n < extent for n, extent in zip(neighbour, mask.shape, strict=True)
                )
                if not inside or not mask[tuple(neighbour)]:
                    actual.append(voxel)
    return np.unique(np.array(actual), axis=0)


def brute_force(prediction, truth, spacing):
    a, b = surface(prediction) * np.array(spacing), surface(truth) * np.array(spacing)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    present, back = apart.min(1), apart.min(0)
    hd95 = max(np.percentile(present, 95), np.percentile(back, 95))
    return hd95, np.concatenate([present, back]).mean()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("shape", [(40, 31), (13, 9, 11)])
def test_dice_equals_monais_on_random_labels(shape, dtype):
    rng = np.random.default_rng(1)
    prediction, truth = rng.integers(0, 4, (2, *shape)).astype(dtype)
    one_hot = [
        torch.from_numpy(np.stack([label == c for c in range(4)])[None]).float()
        for label in (prediction, truth)
    ]
    expected = compute_dice(*one_hot, include_background=False)[0]
    assert dice_per_class(prediction, truth, 4) == pytest.approx(expected.tolist(), abs=1e-6)


def test_dice_of_half_overlapping_boxes_is_one_half():
    prediction, truth = (
        box((10, 10, 10), (2, 2, 2), (6, 6, 6)),
        box((10, 10, 10), (4, 2, 2), (8, 6, 6)),
    )
    assert dice_per_class(prediction.astype(np.uint8), truth.astype(np.uint8), 2) == [0.5]


def test_a_class_absent_from_both_scores_one_and_from_one_alone_zero():
    prediction, truth = np.array([[0, 1, 2]]), np.array([[0, 1, 0]])
    assert dice_per_class(prediction, truth, 4) == [1.0, 0.0, 1.0]
    assert dice_per_class(truth, prediction, 4) == [1.0, 0.0, 1.0]


def test_a_number_beyond_the_classes_counts_as_none_of_them():
    assert dice_per_class(np.array([1, 9, 1]), np.array([1, 1, 9]), 2) == [0.5]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 3.0, 1.3)])
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_equal_brute_force_in_3d(seed, spacing):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 9, 8, 7)) > (0.4 + 0.15 * seed)
    assert surface_distances(prediction, truth, spacing) == pytest.approx(
        brute_force(prediction, truth, spacing), rel=1e-5
    )


def test_surface_distances_equal_brute_force_in_2d_at_the_pictures_border():
    prediction, truth = box((12, 15), (0, 0), (7, 15)), box((12, 15), (3, 2), (12, 9))
    expected = brute_force(prediction, truth, (2.0, 0.5))
    assert surface_distances(prediction, truth, (2.0, 0.5)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("voxels", [1, 2, 5])
def test_a_plate_moved_along_an_axis_is_as_far_in_mm_as_it_was_moved(axis, voxels):
    spacing = (0.5, 1.0, 4.0)
    start, stop = [0, 0, 0], [20, 20, 20]
    start[axis], stop[axis] = 4, 5
    plate = box((20, 20, 20), start, stop)
    moved = np.roll(plate, voxels, axis)
    assert surface_distances(moved, plate, spacing) == pytest.approx([voxels * spacing[axis]] * 2)


def test_equal_masks_are_no_distance_apart_and_order_does_not_matter():
    first_mask, second_mask = (
        box((20, 20, 20), (2, 3, 4), (9, 9, 9)),
        box((20, 20, 20), (5, 5, 5), (15, 11, 19)),
    )
    assert surface_distances(first_mask, first_mask.copy(), (1, 2, 3)) == (0, 0)
    assert surface_distances(first_mask, second_mask, (1, 2, 3)) == pytest.approx(
        surface_distances(second_mask, first_mask, (1, 2, 3))
    )


def test_hd95_forgets_a_rare_outlier_that_the_mean_remembers():
    truth = box((30, 30, 30), (2, 2, 2), (12, 12, 12))
    prediction = truth.copy()
    prediction[28, 28, 28] = True
    hd95, mean = surface_distances(prediction, truth, (1, 1, 1))
    assert hd95 == 0
    assert mean == pytest.approx(np.sqrt(3) * 17 / (2 * len(surface(truth)) + 1), rel=1e-5)


def test_surface_distance_to_an_empty_mask_is_nan():
    mask, empty = box((5, 5), (1, 1), (3, 3)), np.zeros((5, 5), bool)
    for pair in ((mask, empty), (empty, mask), (empty, empty)):
        assert all(math.isnan(value) for value in surface_distances(*pair, (1, 1)))


def test_a_litre_of_voxels_is_a_thousand_ml():
    assert volume_ml(np.ones((10, 20, 40), bool), (10, 5, 2.5)) == pytest.approx(1000)


def answers(seed, count=60, classes=4):
    rng = np.random.default_rng(seed)
    return rng.integers(classes, size=count), rng.integers(classes, size=count), classes


def test_kappa_equals_a_naive_loop():
    for seed in range(5):
        truth, actual, classes = answers(seed)
        observed = sum((t - f) ** 2 for t, f in zip(truth, actual, strict=True)) / len(truth)
        expected = sum((t - f) ** 2 for t in truth for f in actual) / len(truth) ** 2
        assert metrics.kappa(metrics.confusion(truth, actual, classes)) == pytest.approx(
            1 - observed / expected
        )
    assert metrics.kappa(metrics.confusion(truth, truth, classes)) == 1
    assert metrics.kappa(metrics.confusion(np.array([0, 2]), np.array([2, 0]), 3)) == -1
    assert math.isnan(metrics.kappa(metrics.confusion(np.zeros(3, int), np.zeros(3, int), 3)))


def test_the_confusion_matrix_counts_pairs():
    truth, actual, classes = answers(0)
    table = metrics.confusion(truth, actual, classes)
    for i in range(classes):
        for j in range(classes):
            pairs = zip(truth, actual, strict=True)
            assert table[i, j] == sum((t, f) == (i, j) for t, f in pairs)
    expected = [np.mean(actual[truth == value] == value) for value in range(classes)]
    assert metrics.recalls(table) == pytest.approx(expected)


def test_scores_of_many_confusion_matrices_are_those_of_each():
    tables = np.stack(
        [metrics.confusion(*answers(seed, 7)) for seed in range(6)] + [np.diag([3, 0, 0, 0])]
    )
    assert metrics.kappa(tables) == pytest.approx(
        [float(metrics.kappa(value)) for value in tables], nan_ok=True
    )
    for actual, value in zip(metrics.recalls(tables), tables, strict=True):
        assert actual == pytest.approx(
            [row[i] / row.sum() if row.sum() else math.nan for i, row in enumerate(value)],
            nan_ok=True,
        )


def test_auc_equals_scikit_learn_s_with_ties_and_is_undefined_of_one_kind():
    rng = np.random.default_rng(1)
    values, positive = rng.integers(0, 9, 300) / 9, rng.random(300) < 0.2
    assert metrics.auc(positive, values) == pytest.approx(roc_auc_score(positive, values))
    assert math.isnan(metrics.auc(np.zeros(300, bool), values))


def test_auc_is_how_often_a_case_of_the_class_is_ranked_above_another():
    truth, _, classes = answers(1)
    shares = np.random.default_rng(2).integers(5, size=(len(truth), classes)) / 5  # with ties
    for number, actual in enumerate(metrics.auc_per_class(truth, shares)):
        positive, rest = shares[truth == number, number], shares[truth != number, number]
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in rest]
        assert actual == pytest.approx(sum(wins) / len(wins))
    assert math.isnan(metrics.auc_per_class(np.zeros(4, int), np.ones((4, 2)))[1])
