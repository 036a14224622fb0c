"""Exact rotations against numpy."""

import itertools

import numpy as np
import pytest
import torch

from selfvox.ops import rotations


@pytest.mark.parametrize(("d", "planes", "group"), [(2, 4, 4), (3, 10, 24)])
def test_rotations_are_distinct_and_proper(d, planes, group, rotation_matrix):
    for table, count in (
        (rotations.plane_rotations(d), planes),
        (rotations.rotation_group(d), group),
    ):
        matrices = [rotation_matrix(rotation) for rotation in table]
        assert len({values.tobytes() for values in matrices}) == len(table) == count
        assert [round(np.linalg.det(values)) for values in matrices] == [1] * count
        assert [rotation.determinant for rotation in table] == [1] * count
        assert np.array_equal(matrices[0], np.eye(d))


def test_a_reflection_has_determinant_minus_one():
    assert rotations.AxisRotation((1, 0, 2), (False, False, False)).determinant == -1
    assert rotations.AxisRotation((0, 1, 2), (False, True, False)).determinant == -1


@pytest.mark.parametrize("d", [2, 3])
def test_plane_rotations_are_those_of_numpy_in_order_of_the_angle(d):
    x = np.random.default_rng(0).normal(size=(2, 1, *(4,) * d))
    expected = [x]
    for a, b in itertools.combinations(range(d), 2):
        expected += [np.rot90(x, turns, axes=(2 + a, 2 + b)) for turns in (1, 2, 3)]
    actual = [
        rotation.apply(torch.from_numpy(x)).numpy() for rotation in rotations.plane_rotations(d)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("d", [2, 3])
def test_the_inverse_of_every_rotation_undoes_it_exactly_on_unequal_edges(d):
    x = torch.randn(2, 3, *(4, 5, 6)[:d])
    for rotation in rotations.rotation_group(d):
        assert torch.equal(rotation.inverse().apply(rotation.apply(x)), x)


def test_every_sample_is_turned_by_its_chosen_rotation():
    x, table = torch.randn(30, 2, 4, 4, 4), rotations.rotation_group(3)
    chosen = torch.randint(24, (30,))
    for sample, number, actual in zip(
        x, chosen, rotations.rotate_batch(x, table, chosen), strict=True
    ):
        assert torch.equal(actual, table[number].apply(sample))
