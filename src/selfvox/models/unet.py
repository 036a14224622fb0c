"""U-Net encoders, nnU-Net's own, and their plan by crop and spacing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import pydantic
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.encoder import Encoder
from selfvox.models.family import Family, Settings
from selfvox.ops.planes import AXES
from selfvox.ops.resize import pad_to_multiple
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import AtLeastOne

# a plan beyond these limits was not made by selfvox, and would take minutes or all memory
MOST_CHANNELS = 4096
MOST_LEVELS = 20
MOST_BLOCKS = 100
SMALLEST_MAP = 4  # voxels; a planned level has no shorter edge
SMALLEST_SAMPLE = 8  # values that a norm divides by the spread of; one has no spread
LARGEST_KERNEL = 31  # voxels
KERNEL = 3  # edge of a kernel, unless an architecture says otherwise
DECODER_BLOCKS = 2  # convolutions per level of a decoder, as in nnU-Net's plain networks

Blocks = Annotated[int, AtLeastOne, pydantic.Field(le=MOST_BLOCKS)]
Stride = Annotated[int, AtLeastOne]
# odd, so that a map keeps its size
KernelEdge = Annotated[int, AtLeastOne, pydantic.Field(le=LARGEST_KERNEL)]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Settings of a U-Net encoder."""

    name: Annotated[Literal["plain", "residual"], "plain convolutions, or residual blocks"] = (
        "plain"
    )
    channels: Annotated[
        tuple[Annotated[int, AtLeastOne, pydantic.Field(le=MOST_CHANNELS)], ...],
        "feature channels per level, finest first",
        pydantic.Field(min_length=2, max_length=MOST_LEVELS),
    ] = (16, 32, 64, 128, 256)
    blocks: Annotated[
        Blocks | tuple[Blocks, ...],
        "convolutions (plain) or residual blocks: of every level, or of each, such as 1,3,4,6",
    ] = 2
    # group: the only one of the three that bears a map of one voxel and a batch of one
    norm: Annotated[Literal["instance", "group", "batch"], "normalisation; group: 8 groups"] = (
        "group"
    )
    strides: Annotated[
        tuple[tuple[Stride, ...], ...] | None,
        "per level and axis, such as '[[1,1,1],[2,2,2]]'; default: by crop and spacing",
    ] = None
    kernels: Annotated[
        tuple[tuple[KernelEdge, ...], ...] | None,
        "kernel edges in voxels, per level and axis, such as '[[1,3,3],[3,3,3]]'; default: 3",
    ] = None
    decoder_blocks: Annotated[
        Blocks | tuple[Blocks, ...],
        "convolutions of a decoder of these maps: of every level, or of each, coarsest first",
    ] = DECODER_BLOCKS

    def __post_init__(self) -> None:
        for name in ("strides", "kernels"):
            levels = getattr(self, name)
            if levels is not None and len({len(level) for level in levels}) != 1:
                raise ValueError(f"{name}: have another number of axes on each level; give as many")
        for edge in itertools.chain.from_iterable(self.kernels or ()):
            if edge % 2 == 0:
                raise ValueError(f"kernels: {edge} is even, so that maps would shift; take 1 or 3")
        levels = len(self.channels)
        expected = {"blocks": levels, "kernels": levels, "decoder_blocks": levels - 1}
        for name, count in expected.items():
            given = getattr(self, name)
            if isinstance(given, tuple) and len(given) != count:
                raise ValueError(
                    f"{name}: are of {len(given)} levels where network.channels needs {count}; "
                    "give one for each"
                )

    def finest(self, levels: int) -> Architecture:
        """The same without its coarsest levels, if it has more than so many."""
        decoder_blocks = self.decoder_blocks
        if isinstance(decoder_blocks, tuple):
            decoder_blocks = decoder_blocks[len(self.channels) - levels :]
        return replace(
            self,
            channels=self.channels[:levels],
            blocks=self.blocks if isinstance(self.blocks, int) else self.blocks[:levels],
            kernels=None if self.kernels is None else self.kernels[:levels],
            decoder_blocks=decoder_blocks,
        )

    def to_spec(self) -> dict[str, Any]:
        """Plain values for a card, in which options of few networks are left out at their default.

        So cards of earlier versions, which did not have them, are the same.
        """
        spec = as_dict(self)
        if self.kernels is None:
            del spec["kernels"]
        if self.decoder_blocks == DECODER_BLOCKS:
            del spec["decoder_blocks"]
        return spec


class UNetEncoder(Encoder):
    """nnU-Net's plain or residual encoder (dynamic-network-architectures).

    Args:
        architecture: the settings; its `strides` are not read.
        strides: (level, axis), of each level relative to the level above it.
        spatial_dims: 2 or 3.
        in_channels: of the images.
    """

    def __init__(
        self,
        architecture: Architecture,
        strides: Sequence[Sequence[int]],
        spatial_dims: int,
        in_channels: int,
    ):
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.channels = architecture.channels
        self.norm = architecture.norm
        self.kernels = architecture.kernels
        self.decoder_blocks = architecture.decoder_blocks
        self.strides = _cumulative_strides(strides)
        network = PlainConvEncoder if architecture.name == "plain" else ResidualEncoder
        norm, norm_kwargs = norm_layer(architecture.norm, spatial_dims)
        self.net = network(
            in_channels,
            len(architecture.channels),
            list(architecture.channels),
            nn.Conv3d if spatial_dims == 3 else nn.Conv2d,
            kernel_edges(architecture.kernels, len(architecture.channels), spatial_dims),
            [list(stride) for stride in strides],
            _as_list(architecture.blocks),
            conv_bias=True,
            norm_op=norm,
            norm_op_kwargs=norm_kwargs,
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
        )
        for module in list(self.net.modules()):
            # the shortcut of a residual block is pooled, its convolution strided
            for name, child in module.named_children():
                if isinstance(child, nn.AvgPool2d | nn.AvgPool3d):
                    setattr(module, name, PoolRoundingUp(child))
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.net(x))


@dataclass(frozen=True)
class UNet(Family):
    """One kind of U-Net encoder; its settings are those of `Architecture`."""

    name: str

    @property
    def usage(self) -> str:  # noqa: D102
        return self.name

    def check(self, settings: Settings) -> None:  # noqa: D102
        resolve(Architecture, settings, prefix="network.")

    def plan(
        self, settings: Settings, crop: Sequence[int], spacing_mm: Sequence[float]
    ) -> dict[str, Any]:
        """As many levels as the channels name and the crop allows; see `plan_strides`."""
        architecture = resolve(Architecture, settings, prefix="network.")
        if architecture.strides is None:
            strides = plan_strides(len(architecture.channels), crop, spacing_mm)
            shortened = as_dict(architecture.finest(len(strides)))
            architecture = resolve(
                Architecture, {**shortened, "strides": strides}, prefix="network."
            )
        elif [len(level) for level in architecture.strides] != [len(crop)] * len(
            architecture.channels
        ):
            raise UsageError(
                f"network.strides: expected {len(crop)} numbers for each of the "
                f"{len(architecture.channels)} levels; leave them out, or give as many as "
                "network.channels"
            )
        else:
            _check_strides(architecture.strides, crop)
        _check_kernels(architecture, len(crop))
        return architecture.to_spec()

    def check_input(self, spec: Settings, edges: Sequence[int]) -> None:
        """Refuse inputs with maps that leave the norm too few values to take a mean of.

        Raises:
            UsageError: they are too small; names the norm and a remedy.
        """
        architecture = resolve(Architecture, spec, prefix="network.")
        assert architecture.strides is not None
        strides = _cumulative_strides(architecture.strides)
        for channels, stride in zip(architecture.channels, strides, strict=True):
            voxels = math.prod(map(_divide_up, edges, stride))
            values = _values_of_a_mean(architecture.norm, channels, voxels)
            if values < SMALLEST_SAMPLE:
                is_group = architecture.norm == "group"
                remedy = "more --network.channels" if is_group else "--network.norm group"
                raise UsageError(
                    f"network.norm: an input of {' x '.join(map(str, edges))} voxels ends in a map "
                    f"of {voxels}, of which {architecture.norm} norm takes the mean of {values} "
                    f"values; use a larger --crop, or {remedy}"
                )

    def build(self, spec: Settings, spatial_dims: int, in_channels: int) -> Encoder:  # noqa: D102
        architecture = resolve(Architecture, spec, prefix="network.")
        if architecture.strides is None:
            raise UsageError("network.strides: are missing from this plan; plan the network first")
        levels = len(architecture.channels)
        if [len(level) for level in architecture.strides] != [spatial_dims] * levels:
            raise UsageError(
                f"network.strides: are not of {levels} levels and {spatial_dims} axes; plan the "
                "network again"
            )
        _check_kernels(architecture, spatial_dims)
        return UNetEncoder(architecture, architecture.strides, spatial_dims, in_channels)


PLAIN = UNet("plain")
RESIDUAL = UNet("residual")


class PoolRoundingUp(nn.Module):
    """A pooling that rounds odd edges up, as the convolutions next to it do."""

    def __init__(self, pool: nn.AvgPool2d | nn.AvgPool3d):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return cast(Tensor, self.pool(pad_to_multiple(x, cast(Sequence[int], self.pool.stride))))


class NormChannels(nn.GroupNorm):
    """GroupNorm with 8 groups, called with the number of channels alone."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(norm_groups(channels), channels, **kwargs)


def norm_groups(channels: int) -> int:
    """How many groups a group norm of so many channels has."""
    return math.gcd(8, channels)  # so that groups are of equal size


def norm_layer(name: str, spatial_dims: int) -> tuple[type[nn.Module], dict[str, Any]]:
    """The normalisation's class and arguments."""
    norms: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
        "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
        "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
        "group": (NormChannels, NormChannels),
    }
    return norms[name][spatial_dims - 2], {"eps": 1e-5, "affine": True}


def _cumulative_strides(strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Strides relative to the input, from those relative to the level above."""
    return tuple(itertools.accumulate(map(tuple, strides), _multiply))


def _check_strides(strides: Sequence[Sequence[int]], crop: Sequence[int]) -> None:
    """Refuse strides that reach beyond a crop.

    Raises:
        UsageError: along the first such axis.
    """
    for axis, (stride, edge) in enumerate(zip(_cumulative_strides(strides)[-1], crop, strict=True)):
        if stride > edge:
            raise UsageError(
                f"network.strides: are {stride} together along {AXES[axis]}, where the crop has "
                f"{edge} voxels; use smaller strides or a larger --crop"
            )


def _check_kernels(architecture: Architecture, spatial_dims: int) -> None:
    """Refuse kernels of another number of axes than the images."""
    if architecture.kernels is not None and len(architecture.kernels[0]) != spatial_dims:
        raise UsageError(
            f"network.kernels: have {len(architecture.kernels[0])} axes and the scans "
            f"{spatial_dims}; give an edge for each"
        )


def kernel_edges(
    kernels: Sequence[Sequence[int]] | None, levels: int, spatial_dims: int
) -> list[list[int]]:
    """Edges of the kernels in voxels, (level, axis); without any given, those of the default."""
    if kernels is None:
        return [[KERNEL] * spatial_dims for _ in range(levels)]
    return [list(level) for level in kernels]


def _as_list(blocks: int | tuple[int, ...]) -> int | list[int]:
    return blocks if isinstance(blocks, int) else list(blocks)


def _values_of_a_mean(norm: str, channels: int, voxels: int) -> int:
    """How many values of one image a norm takes one mean of; of a batch norm, those of eight."""
    if norm == "group":
        return voxels * channels // norm_groups(channels)
    return voxels if norm == "instance" else 8 * voxels


def _divide_up(edge: int, stride: int) -> int:
    """The edge of a map: a strided convolution rounds up."""
    return -(-edge // stride)


def _multiply(stride: tuple[int, ...], step: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(stride, step, strict=True))


def plan_strides(levels: int, crop: Sequence[int], spacing_mm: Sequence[float]) -> list[list[int]]:
    """Strides of up to `levels` levels: each halves the axes of a spacing below twice the finest.

    An axis is halved only where that leaves whole voxels and a map of at least `SMALLEST_MAP`; the
    levels end where no axis is.
    """
    sizes = list(crop)
    spacings = list(spacing_mm)
    strides = [[1] * len(sizes)]
    while len(strides) < levels:
        divisible = [size % 2 == 0 and size >= 2 * SMALLEST_MAP for size in sizes]
        if not any(divisible):
            break
        # as nnU-Net plans: a coarse axis waits until the others are as coarse
        limit = 2 * min(itertools.compress(spacings, divisible))
        stride = [
            2 if halves and spacing < limit else 1
            for spacing, halves in zip(spacings, divisible, strict=True)
        ]
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
        spacings = [spacing * step for spacing, step in zip(spacings, stride, strict=True)]
        strides.append(stride)
    return strides


def he_initialise(module: nn.Module) -> None:
    """He-normal weights for a convolution, as nnU-Net starts from; other layers keep theirs."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # the slope of nnU-Net's leaky ReLU
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
