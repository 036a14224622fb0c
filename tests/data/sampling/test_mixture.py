from collections import Counter

import numpy as np
import pytest

from selfvox.data.sampling.mixture import Mixture


class Named:
    def __init__(self, name):
        self.name = name

    def __getitem__(self, sample):
        return self.name, sample


def test_the_share_is_kept_and_a_sample_is_always_the_same():
    mixture = Mixture(Named("first"), Named("second"), 0.3, seed=5)
    drawn = [mixture[sample] for sample in range(2000)]
    is_second = np.array([name == "second" for name, _ in drawn])
    assert abs(is_second.mean() - 0.3) < 0.04  # four standard errors
    assert [sample for _, sample in drawn] == list(range(2000))
    assert drawn == [Mixture(Named("first"), Named("second"), 0.3, seed=5)[n] for n in range(2000)]
    other = [Mixture(Named("first"), Named("second"), 0.3, seed=6)[n] for n in range(2000)]
    assert drawn != other


def test_a_mixture_of_a_mixture_chooses_independently():
    inner = Mixture(Named("a"), Named("b"), 0.75, seed=5)
    mixture = Mixture(inner, Named("c"), 0.5, seed=5, stream=5)
    counts = Counter(mixture[n][0] for n in range(4000))
    assert counts["c"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts["b"] / (counts["a"] + counts["b"]) == pytest.approx(0.75, abs=0.04)
