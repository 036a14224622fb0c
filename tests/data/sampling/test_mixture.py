import numpy as np

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
