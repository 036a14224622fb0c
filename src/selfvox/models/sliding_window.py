"""Predict a whole scan by overlapping windows, or slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

SLICES_AT_ONCE = 16


@torch.no_grad()
def segment_scan(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float = 0.5,
    slice_axis: int | None = None,
    overlapping: bool = False,
) -> Tensor:
    """Class probabilities of a whole scan from overlapping windows, weighted towards their centres (MONAI).

    Args:
        network: (batch, channel, *window) -> logits.
        image: (channel, *space).
        window: edges of the windows in voxels; a smaller scan is mirrored at its edges, like the crops of training.
        overlap: share by which neighbours overlap.
        slice_axis: a 2D network's: each slice along this axis of the volume is a picture of its own.
        overlapping: the outputs are regions, each with a probability of its own.

    Returns:
        (class, *space) float32, summing to one over the classes; or (region, *space).
    """
    pictures = image[None] if slice_axis is None else image.movedim(1 + slice_axis, 0)
    padded, before = pad_to_window(pictures, window)
    logits = sliding_window_inference(
        padded,
        roi_size=tuple(window),
        # two at a time: a CPU convolution of a single small sample leaves the fast path
        sw_batch_size=(2 if image.device.type == "cpu" else 4)
        if slice_axis is None
        else SLICES_AT_ONCE,
        predictor=lambda x: _beside_its_copy(network, x).float(),
        overlap=overlap,
        mode="gaussian",
    )
    for axis in range(len(window)):
        logits = logits.narrow(2 + axis, before[axis], pictures.shape[2 + axis])
    probabilities: Tensor = logits.sigmoid() if overlapping else logits.softmax(1)
    return probabilities[0] if slice_axis is None else probabilities.movedim(0, 1 + slice_axis)


def pad_to_window(images: Tensor, window: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Images (batch, channel, *space), extended to hold a window, and how many voxels went before each axis."""
    # mirrored up to the window here, since MONAI pads with a constant that training never showed
    short = [max(0, want - have) for want, have in zip(window, images.shape[2:], strict=True)]
    before = [room - room // 2 for room in short]
    padded = images
    for axis in range(len(window)):
        padded = _mirror(padded, 2 + axis, before[axis], short[axis] - before[axis])
    return padded, before


def _beside_its_copy(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`network(x)`, where a small volume alone on the CPU is computed twice.

    Two took 40 ms of an encoder and one 97 ms at 32 voxels cubed in fp32; as long at 48, and at 64 twice as long.
    """
    fp32_on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if fp32_on_cpu and len(x) == 1 and x.ndim == 5 and x[0, 0].numel() <= 40**3:
        return network(x.expand(2, *x.shape[1:]))[:1]
    return network(x)


def _mirror(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Extend one axis by mirroring, edge voxel included, as often as it takes."""
    size = x.shape[axis]
    positions = torch.arange(-before, size + after, device=x.device) % (2 * size)
    return x.index_select(axis, torch.minimum(positions, 2 * size - 1 - positions))
