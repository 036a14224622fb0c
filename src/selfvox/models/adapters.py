"""Adapters for networks that return feature maps: MONAI's, timm's, plug-ins' and a user's own."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.encoder import Encoder
from selfvox.models.family import Family, Settings
from selfvox.plugins import Plugin

SWIN_TRANSFORMER = "SwinTransformer"  # the name of MONAI's class
TRIAL_EDGE = 64  # voxels; all strides that are common divide it


class FeatureNetwork(Encoder):
    """Any network that returns a list of feature maps, finest first.

    Its channels and strides are measured on one empty image.

    Raises:
        UsageError: it returns something else, or does not take such an image.
    """

    def __init__(self, net: nn.Module, spatial_dims: int, in_channels: int):
        super().__init__()
        self.net = net
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        maps = _trial_maps(net, spatial_dims, in_channels)
        self.channels = tuple(level.shape[1] for level in maps)
        self.strides = tuple(
            tuple(TRIAL_EDGE // size for size in level.shape[2:]) for level in maps
        )

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.net(x))


def _trial_maps(net: nn.Module, spatial_dims: int, in_channels: int) -> list[Tensor]:
    """The maps of one empty image, checked."""
    kind = type(net).__name__
    # zeros: only the shapes of the maps are read
    image = torch.zeros(1, in_channels, *(TRIAL_EDGE,) * spatial_dims)
    training = net.training
    try:
        with torch.no_grad():
            # in eval mode: a batch norm would refuse a single value per channel, and learn from it
            maps = net.eval()(image)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"network: {kind} does not take an image of shape {tuple(image.shape)} ({reason}); "
            "take another network"
        ) from None
    finally:
        # a wrapped network of the user is given back as it was
        net.train(training)
    if not isinstance(maps, list | tuple) or not all(isinstance(level, Tensor) for level in maps):
        raise UsageError(
            f"network: {kind} returns no list of feature maps; take one that does, such as "
            "monai:ResNetFeatures"
        )
    sizes = [level.shape[2:] for level in maps]
    within = all(1 <= size <= TRIAL_EDGE for level_sizes in sizes for size in level_sizes)
    if not within or sizes != sorted(sizes, reverse=True):
        raise UsageError(
            f"network: the maps of {kind} are not (batch, channel, *space), finest first: "
            f"{[tuple(level.shape) for level in maps]}; take another network"
        )
    return list(maps)


def wrap_module(module: nn.Module, spatial_dims: int, in_channels: int) -> Encoder:
    """A module as an encoder: itself where it is one, else with its maps measured.

    Raises:
        UsageError: it is for other images, or returns no feature maps.
    """
    if not isinstance(module, Encoder):
        return FeatureNetwork(module, spatial_dims, in_channels)
    if (module.spatial_dims, module.in_channels) != (spatial_dims, in_channels):
        raise UsageError(
            f"network: {type(module).__name__} takes {module.spatial_dims}D images of "
            f"{module.in_channels} channels, and the scans are {spatial_dims}D of {in_channels}; "
            "make one that fits"
        )
    return module


@dataclass(frozen=True)
class Library(Family):
    """Networks of another library, by the library's own names and settings."""

    prefix: str  # of its names, such as `timm:resnet18`
    find: Callable[[str], Callable[..., nn.Module]]  # what makes a network, with random weights
    image_arguments: Callable[[int, int], dict[str, Any]]  # from spatial_dims and in_channels
    dimensions: tuple[int, ...] = (2, 3)

    @property
    def usage(self) -> str:  # noqa: D102
        return f"{self.prefix}:NAME"

    def check(self, settings: Settings) -> None:  # noqa: D102
        _refuse_pretrained(settings)
        self.find(_after_prefix(settings))

    def plan(  # noqa: D102
        self, settings: Settings, crop: Sequence[int], spacing_mm: Sequence[float]
    ) -> dict[str, Any]:
        _refuse_pretrained(settings)
        return dict(settings)

    def build(self, spec: Settings, spatial_dims: int, in_channels: int) -> Encoder:  # noqa: D102
        if spatial_dims not in self.dimensions:
            raise UsageError(
                f"network: {spec['name']} is a 2D network and the scans are {spatial_dims}D; take "
                "a monai: or U-Net encoder"
            )
        settings = {key: value for key, value in spec.items() if key not in ("name", "pretrained")}
        settings |= self.image_arguments(spatial_dims, in_channels)
        make = self.find(_after_prefix(spec))
        try:
            net = make(**settings)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise _cannot_be_made(spec, error) from None
        return FeatureNetwork(net, spatial_dims, in_channels)


@dataclass(frozen=True)
class PluginEncoder(Family):
    """An encoder of an installed package: `make(spatial_dims, in_channels, **settings)`."""

    plugin: Plugin

    @property
    def usage(self) -> str:  # noqa: D102
        return self.plugin.name

    def check(self, settings: Settings) -> None:  # noqa: D102
        self.plugin.load()

    def plan(  # noqa: D102
        self, settings: Settings, crop: Sequence[int], spacing_mm: Sequence[float]
    ) -> dict[str, Any]:
        return {**settings, "plugin": self.plugin.to_json()}

    def build(self, spec: Settings, spatial_dims: int, in_channels: int) -> Encoder:  # noqa: D102
        settings = {key: value for key, value in spec.items() if key not in ("name", "plugin")}
        make = self.plugin.load()
        try:
            module = make(spatial_dims, in_channels, **settings)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise _cannot_be_made(spec, error) from None
        if not isinstance(module, nn.Module):
            raise UsageError(
                f"network: {spec['name']} of the package {self.plugin.package} makes a "
                f"{type(module).__name__}, not a torch module; repair or uninstall that package"
            )
        return wrap_module(module, spatial_dims, in_channels)


def find_monai_network(name: str) -> Callable[..., nn.Module]:
    """The class of one of MONAI's networks.

    Raises:
        UsageError: there is no such network.
    """
    if name == SWIN_TRANSFORMER:
        return swin_transformer
    nets = importlib.import_module("monai.networks.nets")
    classes = {key: value for key, value in vars(nets).items() if isinstance(value, type)}
    network = classes.get(name)
    if network is None or not issubclass(network, nn.Module):
        raise UsageError(
            f"network: MONAI has no network '{name}'{did_you_mean(name, list(classes))}"
        )
    # some fetch weights by default
    if "pretrained" in inspect.signature(network).parameters:
        return functools.partial(network, pretrained=False)
    return network


def swin_transformer(
    spatial_dims: int, in_channels: int, feature_size: int = 48, use_v2: bool = False
) -> nn.Module:
    """The encoder of MONAI's SwinUNETR (Tang et al. 2022), which MONAI does not list by name.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        feature_size: channels of the finest map, a multiple of 12.
        use_v2: with a convolution before each level (He et al. 2023).
    """
    network: nn.Module = importlib.import_module("monai.networks.nets.swin_unetr").SwinTransformer(
        in_chans=in_channels,
        embed_dim=feature_size,
        window_size=(7,) * spatial_dims,
        patch_size=(2,) * spatial_dims,
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        spatial_dims=spatial_dims,
        use_v2=use_v2,
    )
    return network


def find_timm_network(name: str) -> Callable[..., nn.Module]:
    """What makes one of timm's networks.

    Raises:
        UsageError: there is no such network, or timm cannot be imported.
    """
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"network: timm cannot be imported ({error}); install selfvox[timm]"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"network: timm cannot be imported ({error}); install the torchvision that belongs to "
            f"torch {torch.__version__}"
        ) from None
    if not timm.is_model(name):
        raise UsageError(
            f"network: timm has no network '{name}'{did_you_mean(name, timm.list_models())}"
        )
    return functools.partial(timm.create_model, name, pretrained=False)


MONAI = Library(
    prefix="monai",
    find=find_monai_network,
    image_arguments=lambda spatial_dims, in_channels: {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
    },
)
TIMM = Library(
    prefix="timm",
    find=find_timm_network,
    image_arguments=lambda spatial_dims, in_channels: {
        "features_only": True,
        "in_chans": in_channels,
    },
    dimensions=(2,),
)


def _after_prefix(settings: Settings) -> str:
    return str(settings["name"]).partition(":")[2]


def _refuse_pretrained(settings: Settings) -> None:
    if settings.get("pretrained", False) is not False:
        raise UsageError(
            "network.pretrained: weights of others are not fetched, networks begin random; leave "
            "it out"
        )


def _cannot_be_made(spec: Settings, error: Exception) -> UsageError:
    reason = str(error).partition("\n")[0]
    return UsageError(
        f"network: {spec['name']} cannot be made with these settings ({reason}); give its own as "
        "--network.NAME"
    )
