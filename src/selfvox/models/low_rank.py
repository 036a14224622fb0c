"""Low-rank adaptation (LoRA): small trained changes of the frozen layers of a network."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 8
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHT = "weight"


class LowRankChange(nn.Module):
    """Adds the product of two small matrices to a weight; it is 0 at first.

    Of a convolution it is a second one to `rank` channels and one of kernel 1 back from these,
    in parallel (Hu et al. 2022 for linear layers).

    Args:
        weight: (out, *rest).
        rank: of the product; at most the edges of the weight as a matrix.
    """

    def __init__(self, weight: Tensor, rank: int = RANK):
        super().__init__()
        rest = weight[0].numel()
        rank = min(rank, len(weight), rest)
        self.down = nn.Parameter(torch.empty(rank, rest, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(self.down.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, *rest)."""
        return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(module: nn.Module) -> int:
    """Freeze a module, in place, except for a low-rank change of each convolution and linear layer.

    Returns:
        How many values are trained.
    """
    module.requires_grad_(False)
    for layer in list(module.modules()):
        if isinstance(layer, LAYERS):
            parametrize.register_parametrization(layer, WEIGHT, LowRankChange(layer.weight))
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def merge_low_rank(module: nn.Module) -> None:
    """Add the changes to the weights, in place: the layers are what they were before."""
    for layer in list(module.modules()):
        changes = _changes(layer)
        if changes is not None:
            weight = nn.Parameter(changes().detach())
            # torch's own removal would change the class, which copies of the layer share
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.register_parameter(WEIGHT, weight)
    module.requires_grad_(True)


def merged(module: nn.Module) -> nn.Module:
    """The module, or a copy of it with the changes added to its weights, if it has some."""
    if all(_changes(layer) is None for layer in module.modules()):
        return module
    result = copy.deepcopy(module)
    merge_low_rank(result)
    return result


def _changes(layer: nn.Module) -> parametrize.ParametrizationList | None:
    """The frozen weight of a layer with its low-rank change; None: it has none."""
    if not parametrize.is_parametrized(layer, WEIGHT):
        return None
    changes = layer.get_submodule(f"parametrizations.{WEIGHT}")
    assert isinstance(changes, parametrize.ParametrizationList)
    return changes if isinstance(changes[0], LowRankChange) else None
