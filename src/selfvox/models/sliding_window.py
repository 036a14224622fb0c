"""Segment a scan by overlapping windows, or slice by slice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from selfvox.models.slab import Place, Slab, window_places, window_weights

SLICES_AT_ONCE = 16  # windows of slices in a batch

# called with a number of windows that are done
WindowCounter = Callable[[int], object]


def segment_scan(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float = 0.5,
    slice_axis: int | None = None,
    overlapping: bool = False,
    count_windows: WindowCounter | None = None,
) -> Tensor:
    """Class probabilities of a scan from overlapping windows, weighted to their centres.

    Args:
        network: (batch, channel, *window) -> logits.
        image: (channel, *space).
        window: edges of the windows in voxels; a smaller scan is mirrored at its edges, like the
            crops of training.
        overlap: share by which neighbours overlap.
        slice_axis: for a 2D network, the axis of the volume to slice along; each slice is a
            picture.
        overlapping: the outputs are regions, each with its own probability.
        count_windows: called after every few windows.

    Returns:
        (class, *space) float32, summing to one over the classes; or (region, *space).
    """
    whole: Tensor | None = None
    for part, probabilities in segment_parts(
        network, image, window, overlap, slice_axis, overlapping, count_windows
    ):
        if whole is None:
            whole = probabilities.new_empty(len(probabilities), *image.shape[1:])
        whole[(slice(None), *part)] = probabilities
    assert whole is not None, "a scan has at least one window"
    return whole


@torch.no_grad()
def segment_parts(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float = 0.5,
    slice_axis: int | None = None,
    overlapping: bool = False,
    count_windows: WindowCounter | None = None,
) -> Iterator[tuple[Place, Tensor]]:
    """As `segment_scan`, part by part, so that memory never has the logits of a whole scan.

    Yields:
        A part of the scan along its axes, and the probabilities (class or region, *part) there;
        every voxel once.
    """
    pictures = image[None] if slice_axis is None else image.movedim(1 + slice_axis, 0)
    padded, margins = pad_to_window(pictures, window)
    weight = window_weights(window, image.device)
    logits = _window_logits(network, padded, window, overlap, slice_axis, count_windows)
    for number, of_picture in itertools.groupby(logits, key=lambda item: item[0]):
        places = ((place, values) for _, place, values in of_picture)
        for first, mean in _mean_logits(places, padded.shape[2:], weight):
            planes, inner = without_margins(mean, first, margins, pictures.shape[2:])
            if not inner.numel():
                continue
            probabilities = inner.sigmoid() if overlapping else inner.softmax(0)
            other_axes = (slice(None),) * (len(window) - 1)
            part: Place = (planes, *other_axes)
            if slice_axis is None:
                yield part, probabilities
                continue
            in_volume: Place = (*part[:slice_axis], slice(number, number + 1), *part[slice_axis:])
            yield in_volume, probabilities.unsqueeze(1 + slice_axis)


def number_of_windows(
    space: Sequence[int], window: Sequence[int], overlap: float, slice_axis: int | None = None
) -> int:
    """How many windows `segment_scan` computes for a scan with these edges."""
    axes = [axis for axis in range(len(space)) if axis != slice_axis]
    size = [max(space[axis], edge) for axis, edge in zip(axes, window, strict=True)]
    pictures = 1 if slice_axis is None else space[slice_axis]
    return pictures * len(window_places(size, window, overlap))


def _window_logits(
    network: Callable[[Tensor], Tensor],
    padded: Tensor,
    window: Sequence[int],
    overlap: float,
    slice_axis: int | None,
    count_windows: WindowCounter | None,
) -> Iterator[tuple[int, Place, Tensor]]:
    """Of each window: number of its picture, its place, and logits (class, *window), in order."""
    places = window_places(padded.shape[2:], window, overlap)
    windows = [(number, place) for number in range(len(padded)) for place in places]
    at_once = _windows_at_once(padded.device, slice_axis)
    for start in range(0, len(windows), at_once):
        batch = windows[start : start + at_once]
        images = torch.stack([padded[number][(slice(None), *place)] for number, place in batch])
        # float32: overlapping windows are added up
        logits = _compute_in_pairs(network, images).float()
        for (number, place), values in zip(batch, logits, strict=True):
            yield number, place, values
        if count_windows is not None:
            count_windows(len(batch))


def _mean_logits(
    windows: Iterator[tuple[Place, Tensor]], size: Sequence[int], weight: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Means over the windows of one picture: first plane and logits (class, plane, *other axes)."""
    slab: Slab | None = None
    position = 0  # of the slab's first plane
    for place, values in windows:
        if slab is None:
            slab = Slab(1, len(values), (len(weight), *size[1:]), values.device)
        start = int(place[0].start)
        if start > position:
            # no later window reaches these planes
            yield position, next(slab.mean_logits(start - position))
            slab.move(start - position)
            position = start
        slab.add_weight(place[1:], weight)
        slab.add(0, place[1:], values[None] * weight)
    assert slab is not None
    yield position, next(slab.mean_logits(len(weight)))


def without_margins(
    values: Tensor, first: int, margins: Sequence[int], inside: Sequence[int]
) -> tuple[slice, Tensor]:
    """Planes (output, plane, *other axes) without what the scan was padded with.

    Args:
        values: of planes of the padded scan.
        first: number of the first of them.
        margins: voxels that were added in front of each axis.
        inside: edges of the scan itself.

    Returns:
        Which planes of the scan these are, and their values; both empty outside the scan.
    """
    start = max(first, margins[0])
    stop = max(start, min(first + values.shape[1], margins[0] + inside[0]))
    inner = values[:, start - first : stop - first]
    for axis in range(1, len(inside)):
        inner = inner.narrow(1 + axis, margins[axis], inside[axis])
    return slice(start - margins[0], stop - margins[0]), inner


def pad_to_window(images: Tensor, window: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Mirror images (batch, channel, *space) at their edges until they contain a window.

    Returns:
        The padded images, and the voxels added in front of each axis.
    """
    # mirrored here, since MONAI pads with a constant that training never showed
    padded = images
    padding = []
    for axis, (needed, edge) in enumerate(zip(window, images.shape[2:], strict=True), start=2):
        missing = max(0, needed - edge)
        front = missing - missing // 2
        padded = _mirror(padded, axis, front, missing - front)
        padding.append(front)
    return padded, padding


def _windows_at_once(device: torch.device, slice_axis: int | None) -> int:
    if slice_axis is not None:
        return SLICES_AT_ONCE
    # a CPU convolution of a single small sample leaves the fast path
    return 2 if device.type == "cpu" else 4


def _compute_in_pairs(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`network(x)`; a small volume alone on the CPU is computed twice, which is faster.

    At 32 voxels cubed in fp32, two took 40 ms of an encoder and one 97 ms; at 48 as long, and at 64
    twice as long.
    """
    fp32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if fp32_on_cpu and len(x) == 1 and x.ndim == 5 and x[0, 0].numel() <= 40**3:
        return network(x.expand(2, *x.shape[1:]))[:1]
    return network(x)


def _mirror(x: Tensor, axis: int, front: int, back: int) -> Tensor:
    """Extend one axis by mirroring, edge voxel included, as often as needed."""
    size = x.shape[axis]
    positions = torch.arange(-front, size + back, device=x.device) % (2 * size)
    return x.index_select(axis, torch.minimum(positions, 2 * size - 1 - positions))
