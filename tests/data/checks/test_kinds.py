"""Scans of one kind are in one group, whatever chain of scans connects them; others are not."""

import numpy as np
import pytest

from selfvox.data.checks import kinds
from selfvox.data.checks.kinds import group_alike


def naive_groups(places, limit):
    """Join groups until no two of them have scans that are alike."""

    def are_near(first, second):
        return any(max(abs(places[i] - places[j])) <= limit for i in first for j in second)

    groups = []
    for index in range(len(places)):
        near = [group for group in groups if are_near([index], group)]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([index, *(member for group in near for member in group)]))
    return sorted(groups, key=lambda group: (-len(group), group))


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_naive_joining(seed):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 40, (4, 3))
    places = centres[rng.integers(0, 4, 40)] + rng.normal(0, 0.7, (40, 3))
    assert group_alike(places) == naive_groups(places, kinds.ALIKE)


def test_a_chain_of_alike_scans_is_one_kind():
    assert group_alike(np.arange(20.0)[:, None] * 3) == [list(range(20))]


def test_scans_that_all_differ_are_not_called_exceptions():
    # each is 10 from the next, so that 10 is nothing special; 50 is
    places = np.array([0.0, 10, 20, 30, 40, 90])[:, None]
    assert group_alike(places) == [[0, 1, 2, 3, 4], [5]]


def test_a_large_set_is_grouped_by_a_part_of_it(monkeypatch):
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.normal(0, 1, (60, 3)), rng.normal(30, 1, (40, 3)), [[99.0] * 3]])
    groups = group_alike(places)
    monkeypatch.setattr(kinds, "_MOST_COMPARED", 25)
    assert group_alike(places) == groups
    assert [len(group) for group in groups] == [60, 40, 1]
