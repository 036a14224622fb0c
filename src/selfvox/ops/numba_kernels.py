"""Loops over the voxels of images on the CPU, compiled by numba when first used.

Why not torch's operations: `grid_sample` writes every position to memory, reads it again and
mirrors it, and takes nine times as long; shifted copies, added up, pass through memory once per
weight. Why not torch.compile: code as fast takes 29 s to make and needs a C++ compiler; this takes
some seconds, once, and is then loaded from a cache (next to the module, or the user's) within
0.5 s. The CPU always uses this code, so a resumed run uses what it began with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def resample_linearly(x: Tensor, matrices: Tensor, shifts: Tensor) -> Tensor:
    """`ops.affine.resample`, linear and without gradients.

    Args:
        x: (batch, channel, *space) in fp32 on the CPU.
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
    """
    d = x.ndim - 2
    # the kernel is 3D; a picture is a volume of one layer
    volumes = x.detach().contiguous().view(*x.shape[:2], *(1,) * (3 - d), *x.shape[2:])
    out = torch.empty_like(volumes)
    steps, starts = _index_maps(x.shape[2:], matrices, shifts)
    inputs = volumes.numpy()
    outputs = out.numpy()
    channels = x.shape[1]

    def map_channel(number: int) -> None:
        sample, channel = divmod(number, channels)
        _map_volume(
            inputs[sample, channel], outputs[sample, channel], steps[sample], starts[sample]
        )

    _run_on_threads(len(x) * channels, map_channel)
    return out.view(x.shape)


def _index_maps(
    shape: Sequence[int], matrices: Tensor, shifts: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The maps as the kernel wants them: about the first voxel instead of the centre, always in 3D.

    Returns:
        `steps` (batch, 3, 3) and `starts` (batch, 3), in fp32.
    """
    d = len(shape)
    # numpy: autocast would round the product to bf16, and so move voxels
    maps = matrices.double().numpy()
    moves = shifts.double().numpy()
    size = np.array(shape)
    centre = (size - 1) / 2
    extended = size > 1  # an axis of one voxel has that voxel everywhere
    steps = np.zeros((len(maps), 3, 3), np.float32)
    starts = np.zeros((len(maps), 3), np.float32)
    steps[:, 3 - d :, 3 - d :] = maps * extended[:, None]
    starts[:, 3 - d :] = (moves + centre - maps @ centre) * extended
    return steps, starts


def correlate(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate one axis of each sample with its own short kernel.

    Edges are mirrored, the last voxel is not repeated.

    Args:
        x: (batch, channel, *space) in fp32 on the CPU.
        weights: (batch, size), the size odd and at most twice the axis's length.
        axis: of `x`.
    """
    x = x.detach().contiguous()
    out = torch.empty_like(x)
    shape = (len(x), math.prod(x.shape[1:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))
    inputs = x.view(shape).numpy()
    outputs = out.view(shape).numpy()
    kernels = weights.float().contiguous().numpy()
    _run_on_threads(
        len(x), lambda sample: _correlate(inputs[sample], outputs[sample], kernels[sample])
    )
    return out


def _run_on_threads(count: int, task: Callable[[int], None]) -> None:
    """Run the task for every number below `count`, on as many threads as torch has."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        for number in range(count):
            task(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(task, range(count)))


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function in machine code, cached on disk where that is writable."""
    options = {
        "fastmath": True,  # sums may be reordered into vector instructions
        "nogil": True,  # threads run in parallel
        "error_model": "numpy",  # a division by zero gives inf, without a branch in the loop
    }
    try:
        code: Callable[P, R] = numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        code = numba.njit(function, **options)
    return code


@_compiled
def _mirrored(position: np.float32, size: int) -> np.float32:
    """A position mirrored about the outer faces of the image, then clamped to voxel centres."""
    period = np.float32(2 * size)
    position = abs(position + np.float32(0.5))
    position -= period * np.floor(position / period)
    position = min(position, period - position) - np.float32(0.5)
    return min(max(position, np.float32(0)), np.float32(size - 1))


@_compiled
def _inside(start: np.float32, step: np.float32, size: int, count: int) -> tuple[int, int]:
    """The range of `k` with `start + k * step` between the first and last voxel: first, end."""
    # a little less than the last: rounding must not lead beyond it
    last = np.float32(size - 1) * np.float32(1 - 1e-5)
    if abs(step) < np.float32(1e-9):
        return (0, count) if 0 <= start <= last else (0, 0)
    first = -start / step
    end = (last - start) / step
    if first > end:
        first, end = end, first
    low = int(np.ceil(min(max(first, np.float32(0)), np.float32(count))))
    high = int(min(max(end, np.float32(-1)), np.float32(count - 1))) + 1
    while low < high and not 0 <= start + step * np.float32(low) <= last:
        low += 1
    while low < high and not 0 <= start + step * np.float32(high - 1) <= last:
        high -= 1
    return low, high


@_compiled
def _interpolate(
    x: np.ndarray,
    at: np.uint32,
    a: np.uint32,
    b: np.uint32,
    c: np.uint32,
    f: np.float32,
    g: np.float32,
    h: np.float32,
) -> np.float32:
    """Trilinear interpolation between the eight voxels from `at` on.

    `a`, `b` and `c` are the steps in memory along the axes, `f`, `g` and `h` the fractions of a
    voxel.
    """
    x00 = x[at] + h * (x[at + c] - x[at])
    x01 = x[at + b] + h * (x[at + b + c] - x[at + b])
    x10 = x[at + a] + h * (x[at + a + c] - x[at + a])
    x11 = x[at + a + b] + h * (x[at + a + b + c] - x[at + a + b])
    near = x00 + g * (x01 - x00)
    far = x10 + g * (x11 - x10)
    value: np.float32 = near + f * (far - near)
    return value


@_compiled
def _map_volume(image: np.ndarray, out: np.ndarray, step: np.ndarray, start: np.ndarray) -> None:
    """`out[p] = image(step @ p + start)`; both (x, y, z), in fp32 and contiguous."""
    n0, n1, n2 = image.shape
    x = image.reshape(-1)
    # unsigned: numba would look for negative indices, which count from the end
    stride0 = np.uint32(n1 * n2)
    stride1 = np.uint32(n2)
    # towards the next voxel; an axis of one voxel has none
    hop0 = np.uint32(n1 * n2 if n0 > 1 else 0)
    hop1 = np.uint32(n2 if n1 > 1 else 0)
    hop2 = np.uint32(1 if n2 > 1 else 0)
    # from one voxel to the next along the last axis
    s0 = step[0, 2]
    s1 = step[1, 2]
    s2 = step[2, 2]
    for i in range(n0):
        for j in range(n1):
            row = out[i, j]
            b0 = start[0] + step[0, 0] * np.float32(i) + step[0, 1] * np.float32(j)
            b1 = start[1] + step[1, 0] * np.float32(i) + step[1, 1] * np.float32(j)
            b2 = start[2] + step[2, 0] * np.float32(i) + step[2, 1] * np.float32(j)
            low0, high0 = _inside(b0, s0, n0, n2)
            low1, high1 = _inside(b1, s1, n1, n2)
            low2, high2 = _inside(b2, s2, n2, n2)
            low = max(low0, low1, low2)
            high = min(high0, high1, high2)
            if low >= high:
                low = high = 0
            # inside the image no position is mirrored: this loop takes nearly all of the time
            for k in range(low, high):
                p0 = b0 + s0 * np.float32(k)
                p1 = b1 + s1 * np.float32(k)
                p2 = b2 + s2 * np.float32(k)
                q0 = np.int32(p0)
                q1 = np.int32(p1)
                q2 = np.int32(p2)
                at = np.uint32(q0) * stride0 + np.uint32(q1) * stride1 + np.uint32(q2)
                row[k] = _interpolate(
                    x,
                    at,
                    hop0,
                    hop1,
                    hop2,
                    p0 - np.float32(q0),
                    p1 - np.float32(q1),
                    p2 - np.float32(q2),
                )
            # before and behind it
            for end in range(2):
                for k in range(0 if end == 0 else high, low if end == 0 else n2):
                    p0 = _mirrored(b0 + s0 * np.float32(k), n0)
                    p1 = _mirrored(b1 + s1 * np.float32(k), n1)
                    p2 = _mirrored(b2 + s2 * np.float32(k), n2)
                    q0 = np.int32(max(min(int(p0), n0 - 2), 0))
                    q1 = np.int32(max(min(int(p1), n1 - 2), 0))
                    q2 = np.int32(max(min(int(p2), n2 - 2), 0))
                    at = np.uint32(q0) * stride0 + np.uint32(q1) * stride1 + np.uint32(q2)
                    row[k] = _interpolate(
                        x,
                        at,
                        hop0,
                        hop1,
                        hop2,
                        p0 - np.float32(q0),
                        p1 - np.float32(q1),
                        p2 - np.float32(q2),
                    )


@_compiled
def _add(onto: np.ndarray, row: np.ndarray, weight: np.float32, first: bool) -> None:
    """`onto` plus the weighted row; the first row replaces what was there."""
    if first:
        for k in range(len(onto)):
            onto[k] = weight * row[k]
    else:
        for k in range(len(onto)):
            onto[k] += weight * row[k]


@_compiled
def _correlate(image: np.ndarray, out: np.ndarray, weights: np.ndarray) -> None:
    """`out[:, i] = sum(weights[t] * image[:, i + t - radius])`; both (outer, axis, inner)."""
    outer, size, inner = image.shape
    taps = len(weights)
    period = max(1, 2 * size - 2)
    radius = taps // 2
    rows = image.reshape(outer, size * inner)
    lines = out.reshape(outer, size * inner)
    padded = np.empty(size + 2 * radius, np.float32)
    for o in range(outer):
        if inner == 1:  # the last axis: a row and its mirrored ends, shifted against itself
            padded[radius : radius + size] = rows[o]
            for i in range(radius):
                start = (radius - i) % period
                end = (size + i) % period
                padded[i] = rows[o, min(start, period - start)]
                padded[radius + size + i] = rows[o, min(end, period - end)]
            for t in range(taps):
                _add(lines[o], padded[t : t + size], weights[t], t == 0)
        else:
            for i in range(size):
                for t in range(taps):
                    at = abs(i + t - radius) % period
                    _add(out[o, i], image[o, min(at, period - at)], weights[t], t == 0)
