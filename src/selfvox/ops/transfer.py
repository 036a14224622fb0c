"""Several small tensors to a device by one copy, since each copy costs as much as a large one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNED_BYTES = 8  # of the largest type


def copy_together(device: torch.device, *tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of the CPU on a device, in their order, by a single copy.

    On the CPU they are returned as they are. The results are views of one buffer.
    """
    if device.type == "cpu":
        return tensors
    parts = []
    for tensor in tensors:
        # a number has no bytes to view, and a tensor of other strides neither
        content = tensor.reshape(-1).contiguous().view(torch.uint8)
        parts.append(content)
        parts.append(content.new_zeros(-len(content) % _ALIGNED_BYTES))
    buffer = torch.cat(parts)
    if device.type == "cuda":
        # from memory that the system may move, the copy would wait for the device
        buffer = buffer.pin_memory()
    buffer = buffer.to(device, non_blocking=True)
    copies = []
    start = 0
    for tensor in tensors:
        size = tensor.element_size() * math.prod(tensor.shape)
        copies.append(buffer[start : start + size].view(tensor.dtype).view(tensor.shape))
        start += size + -size % _ALIGNED_BYTES
    return copies
