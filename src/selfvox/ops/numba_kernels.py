"""Loops over the voxels of images on the CPU, compiled by numba when first used.

Why not torch's operations: `grid_sample` writes every position to memory, reads it again and
mirrors it, and takes nine times as long; shifted copies, added up, pass through memory once per
weight. Why not torch.compile: code as fast takes 29 s to make and needs a C++ compiler; this takes
some seconds, once, and is then loaded from the user's cache within 0.5 s. The CPU always
uses this code, so a resumed run uses what it began with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from selfvox.caches import private_folder

P = ParamSpec("P")
R = TypeVar("R")


def correlate(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate one axis of each sample with its own short kernel.

    Edges are mirrored, the last voxel is not repeated.

    Args:
        x: (batch, channel, *space) in fp32 on the CPU.
        weights: (batch, size), the size odd; a shorter axis is mirrored more than once.
        axis: of `x`.
    """
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    shape = (len(x), math.prod(x.shape[1:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
    inputs = x.view(shape).numpy()
    outputs = out.view(shape).numpy()
    kernels = weights.float().contiguous().numpy()
    run_on_threads(
        len(x), lambda sample: _correlate(inputs[sample], outputs[sample], kernels[sample])
    )
    return out


def interpolate_axis(x: Tensor, lower: Tensor, upper: Tensor, share: Tensor, axis: int) -> Tensor:
    """Each voxel of one axis from two voxels of it: `x[lower] + share * (x[upper] - x[lower])`.

    Args:
        x: (batch, channel, *space) in fp32 on the CPU.
        lower: (batch, edge) indices along the axis.
        upper: (batch, edge).
        share: (batch, edge) in 0 ... 1.
        axis: of `x`.
    """
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    shape = (len(x), math.prod(x.shape[1:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
    inputs = x.view(shape).numpy()
    outputs = out.view(shape).numpy()
    lows = lower.numpy()
    highs = upper.numpy()
    shares = share.float().numpy()

    def interpolate(sample: int) -> None:
        _interpolate_axis(
            inputs[sample], outputs[sample], lows[sample], highs[sample], shares[sample]
        )

    run_on_threads(len(x), interpolate)
    return out


def run_on_threads(count: int, task: Callable[[int], None]) -> None:
    """Run the task for every number below `count`, on as many threads as torch has."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for number in range(count):
            task(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            # a list: an error of any thread is raised here
            list(pool.map(task, range(count)))


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function in machine code, cached on disk in a folder of this user alone."""
    options = {
        "fastmath": True,  # sums may be reordered into vector instructions
        "nogil": True,  # threads run in parallel
        "error_model": "numpy",  # a division by zero gives inf, without a branch in the loop
    }
    # numba runs what it finds there; its own choice is a folder next to the module, in which others
    # may be allowed to write
    folder = private_folder("numba")
    earlier = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        code: Callable[P, R] = numba.njit(function, cache=folder is not None, **options)
    finally:
        numba.config.CACHE_DIR = earlier
    return code


@compiled
def _add(onto: np.ndarray, row: np.ndarray, weight: np.float32, first: bool) -> None:
    """`onto` plus the weighted row; the first row replaces what was there."""
    if first:
        for k in range(len(onto)):
            onto[k] = weight * row[k]
    else:
        for k in range(len(onto)):
            onto[k] += weight * row[k]


@compiled
def _add_five(onto: np.ndarray, rows: tuple[np.ndarray, ...], weights: np.ndarray) -> None:
    """Replace `onto` by the weighted sum of five rows; in one loop, which takes half the time."""
    a, b, c, d, e = rows
    for k in range(len(onto)):
        inner = weights[1] * b[k] + weights[2] * c[k] + weights[3] * d[k]
        onto[k] = weights[0] * a[k] + inner + weights[4] * e[k]


@compiled
def _mirror_index(at: int, size: int) -> int:
    """The index of a row beyond the first or last, which are not repeated."""
    period = max(1, 2 * size - 2)
    at = abs(at) % period
    return min(at, period - at)


@compiled
def _correlate(image: np.ndarray, out: np.ndarray, weights: np.ndarray) -> None:
    """`out[:, i] = sum(weights[t] * image[:, i + t - radius])`; both (outer, axis, inner)."""
    outer, size, inner = image.shape
    taps = len(weights)
    radius = taps // 2
    rows = image.reshape(outer, size * inner)
    lines = out.reshape(outer, size * inner)
    padded = np.empty(size + 2 * radius, np.float32)
    for o in range(outer):
        if inner == 1:  # the last axis: a row and its mirrored ends, shifted against itself
            padded[radius : radius + size] = rows[o]
            for i in range(radius):
                padded[i] = rows[o, _mirror_index(i - radius, size)]
                padded[radius + size + i] = rows[o, _mirror_index(size + i, size)]
            if taps == 5:
                shifted = (
                    padded[:size],
                    padded[1 : size + 1],
                    padded[2 : size + 2],
                    padded[3 : size + 3],
                    padded[4 : size + 4],
                )
                _add_five(lines[o], shifted, weights)
            else:
                for t in range(taps):
                    _add(lines[o], padded[t : t + size], weights[t], t == 0)
        else:
            volume = image[o]
            for i in range(size):
                if taps == 5:
                    neighbours = (
                        volume[_mirror_index(i - 2, size)],
                        volume[_mirror_index(i - 1, size)],
                        volume[i],
                        volume[_mirror_index(i + 1, size)],
                        volume[_mirror_index(i + 2, size)],
                    )
                    _add_five(out[o, i], neighbours, weights)
                else:
                    for t in range(taps):
                        row = volume[_mirror_index(i + t - radius, size)]
                        _add(out[o, i], row, weights[t], t == 0)


@compiled
def _interpolate_axis(
    image: np.ndarray, out: np.ndarray, lower: np.ndarray, upper: np.ndarray, share: np.ndarray
) -> None:
    """`interpolate_axis` of one sample; both images (outer, axis, inner)."""
    outer, size, inner = image.shape
    for o in range(outer):
        if inner == 1:
            row = image[o].reshape(-1)
            line = out[o].reshape(-1)
            for i in range(size):
                line[i] = row[lower[i]] + share[i] * (row[upper[i]] - row[lower[i]])
        else:
            for i in range(size):
                low = image[o, lower[i]]
                high = image[o, upper[i]]
                line = out[o, i]
                f = share[i]
                for k in range(inner):
                    line[k] = low[k] + f * (high[k] - low[k])
