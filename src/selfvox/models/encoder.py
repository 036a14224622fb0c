"""Encoders: what one is, nnU-Net's own, and adapters for MONAI's and timm's feature networks."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.options import as_dict, resolve
from selfvox.settings import AtLeastOne
from selfvox.weights import load_encoder

# a map of shorter edges leaves InstanceNorm too little to divide by: gradients were not finite in one step of five
SMALLEST_MAP = 4


class Encoder(nn.Module, ABC):
    """A network that turns images into feature maps, finest first."""

    spatial_dims: int
    in_channels: int
    channels: tuple[int, ...]  # per level, finest first
    strides: tuple[tuple[int, ...], ...]  # of each level relative to the input, per axis

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, channel, *space) -> one map per level, finest first."""

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.channels[-1]

    def embed(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> (batch, width): the largest value of each channel of the coarsest map.

        The mean would be nearly constant where the last layer is an InstanceNorm, which has just set it.
        """
        coarsest: Tensor = self(x)[-1]
        return coarsest.flatten(2).amax(2)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A U-Net encoder's settings."""

    name: Annotated[Literal["plain", "residual"], "plain convolutions, or residual blocks"] = "plain"
    channels: Annotated[
        tuple[Annotated[int, AtLeastOne], ...], "feature channels per level, finest first", pydantic.Field(min_length=2)
    ] = (16, 32, 64, 128, 256)
    blocks: Annotated[int, "convolutions (plain) or residual blocks per level", AtLeastOne] = 2
    norm: Annotated[Literal["instance", "group", "batch"], "normalisation; group: 8 groups"] = "instance"
    strides: Annotated[tuple[tuple[int, ...], ...] | None, "per level and axis; default: by crop and spacing"] = None


class UNetEncoder(Encoder):
    """nnU-Net's plain or residual encoder (dynamic-network-architectures)."""

    def __init__(self, architecture: Architecture, spatial_dims: int, in_channels: int):
        super().__init__()
        assert architecture.strides is not None, "plan() fills them in"
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.channels = architecture.channels
        self.strides = tuple(
            tuple(math.prod(level[axis] for level in architecture.strides[: depth + 1]) for axis in range(spatial_dims))
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


class FeatureNetwork(Encoder):
    """Any network that returns a list of feature maps, finest first; its channels and strides are found by a trial."""

    def __init__(self, net: nn.Module, spatial_dims: int, in_channels: int):
        super().__init__()
        self.net, self.spatial_dims, self.in_channels = net, spatial_dims, in_channels
        edge = 64
        training = net.training
        with torch.no_grad():
            maps = net.eval()(torch.zeros(1, in_channels, *(edge,) * spatial_dims))
        net.train(training)
        if not isinstance(maps, list | tuple) or not all(isinstance(each, Tensor) for each in maps):
            raise UsageError(
                f"network: {type(net).__name__} returns no list of feature maps; take one that does, such as "
                "monai:ResNetFeatures"
            )
        sizes = [each.shape[2:] for each in maps]
        if sizes != sorted(sizes, reverse=True) or any(not 1 <= size <= edge for each in sizes for size in each):
            raise UsageError(
                f"network: the maps of {type(net).__name__} are not (batch, channel, *space), finest first: "
                f"{[tuple(each.shape) for each in maps]}; take another network"
            )
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(tuple(edge // size for size in each) for each in sizes)

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


def names() -> list[str]:
    """The encoders that `--network` knows."""
    return ["plain", "residual", "monai:NAME", "timm:NAME"]


def plan(network: str | Mapping[str, Any], crop: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Resolve the `network` setting for crops of this size: all that `build` needs to make the encoder again.

    A U-Net is given as many levels as its channels name and the crop allows: every level halves the axes whose spacing
    is below twice the finest, and no map gets smaller than 4 voxels.

    Raises:
        UsageError: an unknown network or setting.
    """
    given = named(network, len(crop))
    if ":" in given["name"]:
        return given
    architecture = resolve(Architecture, given, where="network.")
    if architecture.strides is None:
        strides = _strides(len(architecture.channels), crop, spacing_mm)
        given = {**as_dict(architecture), "channels": architecture.channels[: len(strides)], "strides": strides}
        architecture = resolve(Architecture, given, where="network.")
    elif [len(level) for level in architecture.strides] != [len(crop)] * len(architecture.channels):
        raise UsageError(
            f"network.strides: are no {len(crop)} numbers for each of the {len(architecture.channels)} levels; "
            "leave them out, or give as many as network.channels"
        )
    return as_dict(architecture)


def check(network: str | Mapping[str, Any]) -> None:
    """Refuse an unknown U-Net or setting of one, or a run without an encoder, before any scan is read."""
    given = named(network)
    kind, colon, name = given["name"].partition(":")
    if colon:
        _maker(kind, name)
    else:
        resolve(Architecture, given, where="network.")


def named(network: str | Mapping[str, Any], spatial_dims: int | None = None) -> dict[str, Any]:
    """The `network` setting as a mapping with a name; where that is a run, all that its encoder was built from.

    Args:
        network: the setting.
        spatial_dims: of the scans, which a run's must have too; None: not known yet.

    Raises:
        UsageError: an unknown network, or a run of scans of other dimensions.
        WeightsError: the run holds no intact encoder.
    """
    given = {"name": "plain", **({"name": network} if isinstance(network, str) else network)}
    name = given["name"] = str(given["name"])
    if ":" in name and given.get("pretrained", False) is not False:
        raise UsageError("network.pretrained: weights of others are not fetched, networks begin random; leave it out")
    if ":" in name or name in ("plain", "residual"):
        return given
    run = Path(os.path.expanduser(name))
    if not name or not run.is_dir():
        raise UsageError(f"network: no encoder is called '{name}'{did_you_mean(name, names())}")
    if more := sorted(given.keys() - {"name"}):
        raise UsageError(f"network: {run} names its own settings; leave --network.{more[0]} out")
    _, card = load_encoder(run)
    if spatial_dims not in (None, card["spatial_dims"]):
        raise UsageError(
            f"network: {run} is a network of {card['spatial_dims']}D scans, and these are {spatial_dims}D; name another"
        )
    return dict(card["network"])


def build(spec: Mapping[str, Any], spatial_dims: int, in_channels: int) -> Encoder:
    """Make an encoder, with fresh weights, from what `plan` resolved.

    Raises:
        UsageError: the network does not exist, or does not take these settings or dimensions.
    """
    kind, _, name = str(spec["name"]).partition(":")
    if not name:
        return UNetEncoder(resolve(Architecture, spec, where="network."), spatial_dims, in_channels)
    if kind == "timm" and spatial_dims != 2:
        raise UsageError(f"network: timm:{name} is a 2D network and the scans are 3D; take a monai: or U-Net encoder")
    settings = {key: value for key, value in spec.items() if key not in ("name", "pretrained")}
    if kind == "monai":
        settings |= {"spatial_dims": spatial_dims, "in_channels": in_channels}
    else:
        settings |= {"features_only": True, "in_chans": in_channels}
    try:
        net = _maker(kind, name)(**settings)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"network: {kind}:{name} cannot be made with these settings ({reason}); give its own as --network.NAME"
        ) from None
    return FeatureNetwork(net, spatial_dims, in_channels)


def _strides(levels: int, crop: Sequence[int], spacing_mm: Sequence[float]) -> list[list[int]]:
    sizes, spacings = list(crop), list(spacing_mm)
    strides = [[1] * len(sizes)]
    while len(strides) < levels:
        large = [size % 2 == 0 and size >= 2 * SMALLEST_MAP for size in sizes]
        if not any(large):
            break
        fine = 2 * min(itertools.compress(spacings, large))
        stride = [2 if spacing < fine and ample else 1 for spacing, ample in zip(spacings, large, strict=True)]
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
        spacings = [spacing * step for spacing, step in zip(spacings, stride, strict=True)]
        strides.append(stride)
    return strides


def _maker(kind: str, name: str) -> Callable[..., nn.Module]:
    """What makes a network of MONAI's or timm's, with random weights.

    Raises:
        UsageError: there is no such network, or its library cannot be imported.
    """
    if kind == "monai":
        nets = importlib.import_module("monai.networks.nets")
        known = {each: value for each, value in vars(nets).items() if isinstance(value, type)}
        found = known.get(name)
        if found is None or not issubclass(found, nn.Module):
            raise UsageError(f"network: MONAI has no network '{name}'{did_you_mean(name, list(known))}")
        # some fetch weights unless they are told not to
        takes = inspect.signature(found).parameters
        return functools.partial(found, pretrained=False) if "pretrained" in takes else found
    if kind == "timm":
        try:
            timm = importlib.import_module("timm")
        except ModuleNotFoundError as error:
            raise UsageError(f"network: timm cannot be imported ({error}); install selfvox[timm]") from None
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"network: timm cannot be imported ({error}); install the torchvision that belongs to torch "
                f"{torch.__version__}"
            ) from None
        if not timm.is_model(name):
            raise UsageError(f"network: timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
        return functools.partial(timm.create_model, name, pretrained=False)
    raise UsageError(f"network: no encoder is called '{kind}:{name}'{did_you_mean(f'{kind}:{name}', names())}")


def he_initialise(module: nn.Module) -> None:
    """He-normal weights for a convolution, as nnU-Net starts from; other layers keep theirs."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
