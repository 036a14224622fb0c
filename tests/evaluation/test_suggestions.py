"""The order of suggestions, compared with a search over all candidates."""

import numpy as np
import pytest

from selfvox.evaluation.embeddings import distances
from selfvox.evaluation.suggestions import farthest_first


@pytest.fixture
def apart():
    return distances(np.random.default_rng(0).normal(size=(12, 4)))


def naive(apart, known, candidates, weights, count):
    chosen = []
    for _ in range(count):
        best, best_gain = None, -1.0
        for candidate in candidates:
            if candidate in chosen:
                continue
            gain = weights[candidate] * min(apart[candidate][k] for k in [*known, *chosen])
            if gain > best_gain:
                best, best_gain = candidate, gain
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_each_scan_is_the_farthest_from_those_before(apart, seed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, 12)
    candidates = [3, 4, 5, 6, 7, 9, 11]
    expected = naive(apart, [0, 1], candidates, weights, 5)
    assert farthest_first(apart, [0, 1], candidates, weights, 5) == expected


def test_the_first_of_all_is_the_most_typical(apart):
    first, second = farthest_first(apart, [], range(12), np.ones(12), 2)
    assert first == apart.sum(0).argmin()
    assert second == apart[first].argmax()


def test_a_doubted_scan_comes_before_a_distant_one(apart):
    weights = np.full(12, 1e-3)
    weights[7] = 1
    assert farthest_first(apart, [0], range(1, 12), weights, 1) == [7]


def test_no_more_than_there_are(apart):
    assert sorted(farthest_first(apart, [0], [1, 2], np.ones(12), 5)) == [1, 2]
