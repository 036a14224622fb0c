"""Affine maps of images and labels on the CPU, as loops over voxels compiled by numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfvox.ops.numba_kernels import compiled, run_on_threads


def resample_linearly(
    x: Tensor, matrices: Tensor, shifts: Tensor, fill: Tensor | None = None
) -> Tensor:
    """`ops.affine.resample`, linear and without gradients.

    Args:
        x: (batch, channel, *space) in fp32 on the CPU.
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        fill: (batch, channel), the value outside the image; None: edges are mirrored.
    """
    # numpy takes no tensor that needs a gradient
    inputs = _as_volumes(x.detach())
    outputs = torch.empty_like(inputs)
    steps, starts = _index_maps(x.shape[2:], matrices, shifts)
    channels = x.shape[1]
    values = x.new_zeros(x.shape[:2]) if fill is None else fill.to(x.dtype)
    arrays = inputs.numpy(), outputs.numpy(), values.numpy()

    def map_channel(number: int) -> None:
        sample, channel = divmod(number, channels)
        volume, mapped, value = (array[sample, channel] for array in arrays)
        _map_linearly(volume, mapped, steps[sample], starts[sample], value, fill is None)

    run_on_threads(len(x) * channels, map_channel)
    return outputs.view(x.shape)


def resample_nearest(
    x: Tensor, matrices: Tensor, shifts: Tensor, fill: float | None = None
) -> Tensor:
    """`ops.affine.resample` by nearest neighbour, for labels of any type.

    Args:
        x: (batch, channel, *space) on the CPU.
        matrices: (batch, d, d).
        shifts: (batch, d) in voxels.
        fill: the value outside the image; None: edges are mirrored.
    """
    inputs = _as_volumes(x)
    outputs = torch.empty_like(inputs)
    steps, starts = _index_maps(x.shape[2:], matrices, shifts)
    channels = x.shape[1]
    labels = inputs.numpy()
    mapped = outputs.numpy()
    value = labels.dtype.type(fill or 0)

    def map_channel(number: int) -> None:
        sample, channel = divmod(number, channels)
        _map_nearest(
            labels[sample, channel],
            mapped[sample, channel],
            steps[sample],
            starts[sample],
            value,
            fill is None,
        )

    run_on_threads(len(x) * channels, map_channel)
    return outputs.view(x.shape)


def _as_volumes(x: Tensor) -> Tensor:
    """(batch, channel, x, y, z): the kernels are 3D; a picture is a volume of one layer."""
    d = x.ndim - 2
    return x.contiguous().view(*x.shape[:2], *(1,) * (3 - d), *x.shape[2:])


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


@compiled
def _mirrored(position: np.float32, size: int) -> np.float32:
    """A position mirrored about the outer faces of the image, then clamped to voxel centres."""
    period = np.float32(2 * size)
    position = abs(position + np.float32(0.5))
    position -= period * np.floor(position / period)
    position = min(position, period - position) - np.float32(0.5)
    return min(max(position, np.float32(0)), np.float32(size - 1))


@compiled
def _inside(start: np.float32, step: np.float32, size: int, count: int) -> tuple[int, int]:
    """The range of `k` with `start + k * step` between the first and last voxel: first, end."""
    # a little less than the last: rounding must not lead beyond it
    last = np.float32(size - 1) * np.float32(1 - 1e-5)
    # parallel to this axis: inside all along, or nowhere
    if abs(step) < np.float32(1e-9):
        return (0, count) if 0 <= start <= last else (0, 0)
    first = -start / step
    end = (last - start) / step
    if first > end:
        first, end = end, first
    low = int(np.ceil(min(max(first, np.float32(0)), np.float32(count))))
    high = int(min(max(end, np.float32(-1)), np.float32(count - 1))) + 1
    # the division above is rounded: the ends are checked again, as positions
    while low < high and not 0 <= start + step * np.float32(low) <= last:
        low += 1
    while low < high and not 0 <= start + step * np.float32(high - 1) <= last:
        high -= 1
    return low, high


@compiled
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


@compiled
def _row_inside(
    first: tuple[np.float32, np.float32, np.float32],
    step: np.ndarray,
    sizes: tuple[int, int, int],
    count: int,
) -> tuple[int, int]:
    """The part of an output row, of `count` voxels, that shows the inside: first, end."""
    low0, high0 = _inside(first[0], step[0, 2], sizes[0], count)
    low1, high1 = _inside(first[1], step[1, 2], sizes[1], count)
    low2, high2 = _inside(first[2], step[2, 2], sizes[2], count)
    low = max(low0, low1, low2)
    high = min(high0, high1, high2)
    return (low, high) if low < high else (0, 0)


@compiled
def _is_outside(
    p0: np.float32, p1: np.float32, p2: np.float32, sizes: tuple[int, int, int]
) -> bool:
    """Whether a position is beyond the outer faces of the image."""
    half = np.float32(0.5)
    is_before = min(p0, p1, p2) < -half
    is_behind = p0 >= sizes[0] - half or p1 >= sizes[1] - half or p2 >= sizes[2] - half
    return bool(is_before or is_behind)


@compiled
def _map_linearly(
    image: np.ndarray,
    out: np.ndarray,
    step: np.ndarray,
    start: np.ndarray,
    fill: np.float32,
    mirror: bool,
) -> None:
    """`out[p] = image(step @ p + start)`; both (x, y, z), in fp32 and contiguous."""
    n0, n1, n2 = image.shape
    sizes = (n0, n1, n2)
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
            low, high = _row_inside((b0, b1, b2), step, sizes, n2)
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
                    p0 = b0 + s0 * np.float32(k)
                    p1 = b1 + s1 * np.float32(k)
                    p2 = b2 + s2 * np.float32(k)
                    if not mirror and _is_outside(p0, p1, p2, sizes):
                        row[k] = fill
                        continue
                    p0 = _mirrored(p0, n0)
                    p1 = _mirrored(p1, n1)
                    p2 = _mirrored(p2, n2)
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


@compiled
def _map_nearest(
    image: np.ndarray,
    out: np.ndarray,
    step: np.ndarray,
    start: np.ndarray,
    fill: np.generic,
    mirror: bool,
) -> None:
    """`out[p] = image[the voxel nearest to step @ p + start]`; both (x, y, z), contiguous."""
    n0, n1, n2 = image.shape
    sizes = (n0, n1, n2)
    x = image.reshape(-1)
    stride0 = np.uint32(n1 * n2)
    stride1 = np.uint32(n2)
    half = np.float32(0.5)
    s0 = step[0, 2]
    s1 = step[1, 2]
    s2 = step[2, 2]
    for i in range(n0):
        for j in range(n1):
            row = out[i, j]
            b0 = start[0] + step[0, 0] * np.float32(i) + step[0, 1] * np.float32(j)
            b1 = start[1] + step[1, 0] * np.float32(i) + step[1, 1] * np.float32(j)
            b2 = start[2] + step[2, 0] * np.float32(i) + step[2, 1] * np.float32(j)
            # positions half a voxel on, cut to whole voxels, are rounded ones
            c0 = b0 + half
            c1 = b1 + half
            c2 = b2 + half
            low, high = _row_inside((c0, c1, c2), step, (n0 + 1, n1 + 1, n2 + 1), n2)
            for k in range(low, high):
                q0 = np.uint32(np.int32(c0 + s0 * np.float32(k)))
                q1 = np.uint32(np.int32(c1 + s1 * np.float32(k)))
                q2 = np.uint32(np.int32(c2 + s2 * np.float32(k)))
                row[k] = x[q0 * stride0 + q1 * stride1 + q2]
            for end in range(2):
                for k in range(0 if end == 0 else high, low if end == 0 else n2):
                    p0 = b0 + s0 * np.float32(k)
                    p1 = b1 + s1 * np.float32(k)
                    p2 = b2 + s2 * np.float32(k)
                    if not mirror and _is_outside(p0, p1, p2, sizes):
                        row[k] = fill
                        continue
                    q0 = np.uint32(_mirrored(p0, n0) + half)
                    q1 = np.uint32(_mirrored(p1, n1) + half)
                    q2 = np.uint32(_mirrored(p2, n2) + half)
                    row[k] = x[q0 * stride0 + q1 * stride1 + q2]
