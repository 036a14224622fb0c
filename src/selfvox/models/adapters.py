"""Adapters for MONAI's and timm's feature networks."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.encoder import Encoder, encoder_names


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
        if sizes != sorted(sizes, reverse=True) or any(
            not 1 <= size <= edge for each in sizes for size in each
        ):
            raise UsageError(
                f"network: the maps of {type(net).__name__} are not (batch, channel, *space), finest first: "
                f"{[tuple(each.shape) for each in maps]}; take another network"
            )
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(tuple(edge // size for size in each) for each in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.net(x))


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
            raise UsageError(
                f"network: MONAI has no network '{name}'{did_you_mean(name, list(known))}"
            )
        # some fetch weights unless they are told not to
        takes = inspect.signature(found).parameters
        return functools.partial(found, pretrained=False) if "pretrained" in takes else found
    if kind == "timm":
        try:
            timm = importlib.import_module("timm")
        except ModuleNotFoundError as error:
            raise UsageError(
                f"network: timm cannot be imported ({error}); install selfvox[timm]"
            ) from None
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"network: timm cannot be imported ({error}); install the torchvision that belongs to torch "
                f"{torch.__version__}"
            ) from None
        if not timm.is_model(name):
            raise UsageError(
                f"network: timm has no network '{name}'{did_you_mean(name, timm.list_models())}"
            )
        return functools.partial(timm.create_model, name, pretrained=False)
    raise UsageError(
        f"network: no encoder is called '{kind}:{name}'{did_you_mean(f'{kind}:{name}', encoder_names())}"
    )
