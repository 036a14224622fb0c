"""Segment a scan by overlapping windows, or slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SLICES_AT_ONCE = 16  # windows of slices in a batch


@torch.no_grad()
def segment_scan(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float = 0.5,
    slice_axis: int | None = None,
    overlapping: bool = False,
) -> Tensor:
    """Class probabilities of a scan from overlapping windows (MONAI), weighted to their centres.

    Args:
        network: (batch, channel, *window) -> logits.
        image: (channel, *space).
        window: edges of the windows in voxels; a smaller scan is mirrored at its edges, like the
            crops of training.
        overlap: share by which neighbours overlap.
        slice_axis: for a 2D network, the axis of the volume to slice along; each slice is a
            picture.
        overlapping: the outputs are regions, each with its own probability.

    Returns:
        (class, *space) float32, summing to one over the classes; or (region, *space).
    """
    pictures = image[None] if slice_axis is None else image.movedim(1 + slice_axis, 0)
    padded, padding = pad_to_window(pictures, window)
    from monai.inferers.utils import sliding_window_inference  # only here: it takes seconds

    logits = sliding_window_inference(
        padded,
        roi_size=tuple(window),
        sw_batch_size=_windows_at_once(image.device, slice_axis),
        # float32: overlapping windows are added up
        predictor=lambda windows: _compute_in_pairs(network, windows).float(),
        overlap=overlap,
        # a network sees less of the surroundings at the edge of a window
        mode="gaussian",
    )
    for axis in range(len(window)):
        logits = logits.narrow(2 + axis, padding[axis], pictures.shape[2 + axis])
    probabilities: Tensor = logits.sigmoid() if overlapping else logits.softmax(1)
    return probabilities[0] if slice_axis is None else probabilities.movedim(0, 1 + slice_axis)


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
