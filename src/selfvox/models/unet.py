"""U-Net encoders, nnU-Net's own, and their plan by crop and spacing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from selfvox.models.encoder import Encoder
from selfvox.settings.verbs import AtLeastOne

# a map of shorter edges leaves InstanceNorm too little to divide by: gradients were not finite in one step of five
SMALLEST_MAP = 4


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A U-Net encoder's settings."""

    name: Annotated[Literal["plain", "residual"], "plain convolutions, or residual blocks"] = (
        "plain"
    )
    channels: Annotated[
        tuple[Annotated[int, AtLeastOne], ...],
        "feature channels per level, finest first",
        pydantic.Field(min_length=2),
    ] = (16, 32, 64, 128, 256)
    blocks: Annotated[int, "convolutions (plain) or residual blocks per level", AtLeastOne] = 2
    norm: Annotated[Literal["instance", "group", "batch"], "normalisation; group: 8 groups"] = (
        "instance"
    )
    strides: Annotated[
        tuple[tuple[int, ...], ...] | None, "per level and axis; default: by crop and spacing"
    ] = None


class UNetEncoder(Encoder):
    """nnU-Net's plain or residual encoder (dynamic-network-architectures)."""

    def __init__(self, architecture: Architecture, spatial_dims: int, in_channels: int):
        super().__init__()
        assert architecture.strides is not None, "plan() fills them in"
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.channels = architecture.channels
        self.strides = tuple(
            tuple(
                math.prod(level[axis] for level in architecture.strides[: depth + 1])
                for axis in range(spatial_dims)
            )
            for depth in range(len(architecture.strides))
        )
        build = PlainConvEncoder if architecture.name == "plain" else ResidualEncoder
        norm, norm_kwargs = norm_layer(architecture.norm, spatial_dims)
        self.net = build(
            in_channels,
            len(architecture.channels),
            list(architecture.channels),
            nn.Conv3d if spatial_dims == 3 else nn.Conv2d,
            3,
            [list(stride) for stride in architecture.strides],
            architecture.blocks,
            conv_bias=True,
            norm_op=norm,
            norm_op_kwargs=norm_kwargs,
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
        )
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.net(x))


class NormChannels(nn.GroupNorm):
    """GroupNorm with 8 groups, called with the number of channels alone, as the U-Net's builders do."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(math.gcd(8, channels), channels, **kwargs)


def norm_layer(name: str, spatial_dims: int) -> tuple[type[nn.Module], dict[str, Any]]:
    """The normalisation's class and arguments."""
    norms: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
        "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
        "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
        "group": (NormChannels, NormChannels),
    }
    return norms[name][spatial_dims - 2], {"eps": 1e-5, "affine": True}


def _strides(levels: int, crop: Sequence[int], spacing_mm: Sequence[float]) -> list[list[int]]:
    sizes, spacings = list(crop), list(spacing_mm)
    strides = [[1] * len(sizes)]
    while len(strides) < levels:
        large = [size % 2 == 0 and size >= 2 * SMALLEST_MAP for size in sizes]
        if not any(large):
            break
        fine = 2 * min(itertools.compress(spacings, large))
        stride = [
            2 if spacing < fine and ample else 1
            for spacing, ample in zip(spacings, large, strict=True)
        ]
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
        spacings = [spacing * step for spacing, step in zip(spacings, stride, strict=True)]
        strides.append(stride)
    return strides


def he_initialise(module: nn.Module) -> None:
    """He-normal weights for a convolution, as nnU-Net starts from; other layers keep theirs."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
