"""The order in which samples show cases, which follows from the seed and the sample's number."""

from __future__ import annotations

import functools

import numpy as np


def case_index(seed: int, sample: int, count: int) -> int:
    """Index of the case, out of `count`, that a sample shows.

    Every epoch shows each case once, in its own order.
    """
    epoch, position = divmod(sample, count)
    return int(_order(seed, epoch, count)[position])


def sample_generator(seed: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample; 1 sets them apart from those of the order of an epoch."""
    return np.random.default_rng((seed, 1, sample))


def partner_index(seed: int, sample: int, count: int) -> int:
    """Which of `count` other scans of the same person a sample is paired with."""
    # 7 sets these numbers apart from those of the samples, which do not depend on pairs
    return int(np.random.default_rng((seed, 7, sample)).integers(count))


# once per epoch, not per sample; samples of two epochs may take turns
@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    # half the memory of numpy's own integers
    return np.random.default_rng((seed, 0, epoch)).permutation(count).astype(np.int32)
