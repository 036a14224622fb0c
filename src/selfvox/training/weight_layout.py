"""Layout of a network's weights in memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def lay_out_weights(module: nn.Module, device: torch.device) -> None:
    """Store the weights of 3D convolutions channels last where a training step is faster with it.

    On a CPU without AVX-512, oneDNN (of torch 2.13) computes the gradient of these weights in half
    the time if weights and maps are channels last; the maps follow the weights. Batch and instance
    norms copy such maps, which takes as long as the convolutions save, so networks with these norms
    stay as they are (benchmarks/weight_layout.py).
    """
    has_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    copies_maps = any(isinstance(part, _NormBase) for part in module.modules())
    if device.type != "cpu" or not has_avx2 or copies_maps:
        return
    for weights in module.parameters():
        if weights.ndim == 5:
            weights.data = weights.data.contiguous(memory_format=torch.channels_last_3d)
