"""Build an encoder from the `network` setting."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from selfvox import plugins
from selfvox.errors import UsageError, did_you_mean
from selfvox.models.adapters import MONAI, TIMM, PluginEncoder, wrap_module
from selfvox.models.encoder import Encoder
from selfvox.models.family import Family
from selfvox.models.nnunet_plans import NnunetPlans, is_plans_name, read_plans
from selfvox.models.unet import PLAIN, RESIDUAL
from selfvox.runs.card import Card
from selfvox.runs.weights import load_strictly, read_encoder

Network = (
    str | Mapping[str, Any] | nn.Module
)  # a name or run, a name with its settings, or a module

FAMILIES: tuple[Family, ...] = (PLAIN, RESIDUAL, MONAI, TIMM)

# nnU-Net's presets ResEnc M, L and XL (Isensee et al. 2024), which differ in their patches alone
RESENC = "resenc"
RESENC_SETTINGS: dict[str, Any] = {
    "name": "residual",
    "channels": [32, 64, 128, 256, 320, 320],
    "blocks": [1, 3, 4, 6, 6, 6],
    "norm": "instance",
    "decoder_blocks": 1,
}


def encoder_names() -> list[str]:
    """The encoders that `--network` offers: selfvox's own, then those of installed packages."""
    built_in = [family.usage for family in FAMILIES] + [RESENC]
    names = {plugin.name for plugin in plugins.installed_plugins(plugins.ENCODERS)}
    return built_in + sorted(names - set(built_in))


def plan_encoder(
    network: Network, crop: Sequence[int], spacing_mm: Sequence[float]
) -> dict[str, Any]:
    """Resolve the `network` setting for crops of this size: all that `build_encoder` needs.

    Args:
        network: a name, a run, a name with settings, or a module, of which only the class is noted.
        crop: edges of what the encoder is given, in voxels.
        spacing_mm: of these voxels, along each axis.

    Raises:
        UsageError: an unknown network or setting.
    """
    if isinstance(network, nn.Module):
        return {"name": f"{type(network).__module__}:{type(network).__qualname__}"}
    settings = network_settings(network, len(crop))
    return _find_family(settings).plan(_without_plugin(settings), crop, spacing_mm)


def check_network(network: Network) -> None:
    """Refuse an unknown network or setting, or a run without an encoder; reads no scan."""
    if isinstance(network, nn.Module):
        return
    settings = network_settings(network)
    _find_family(settings).check(_without_plugin(settings))


def network_settings(
    network: str | Mapping[str, Any], spatial_dims: int | None = None
) -> dict[str, Any]:
    """The `network` setting as a mapping with a name; of a run, what its encoder was built from.

    Args:
        network: the setting.
        spatial_dims: of the scans, which a run's must have too; None: not yet known.

    Raises:
        UsageError: an unknown network, or a run or plans of scans of other dimensions.
        WeightsError: the run contains no intact encoder.
        DataError: the plans are missing or damaged.
    """
    options = {"name": network} if isinstance(network, str) else network
    # settings without a name are of the default network
    settings = {"name": "plain", **options}
    name = str(settings["name"])
    settings["name"] = name
    if is_plans_name(name):
        return _settings_of_plans(settings, spatial_dims)
    if name == RESENC:
        return {**RESENC_SETTINGS, **settings, "name": RESENC_SETTINGS["name"]}
    run = Path(os.path.expanduser(name))
    # a name is never taken for the folder of the same name
    if ":" in name or not name or _family_of(name) or not run.is_dir():
        _find_family(settings)
        return settings
    if extra := sorted(settings.keys() - {"name"}):
        raise UsageError(f"network: {run} names its own settings; leave --network.{extra[0]} out")
    _, card = read_encoder(run)
    if spatial_dims not in (None, card.spatial_dims):
        raise UsageError(
            f"network: {run} is a network of {card.spatial_dims}D scans, and these are "
            f"{spatial_dims}D; name another"
        )
    return dict(card.network)


def plans_of(network: Network | None) -> NnunetPlans | None:
    """The plans of nnU-Net that the `network` setting names; None where it names none.

    Raises:
        DataError: the file is missing or damaged.
        UsageError: an unknown configuration, or a network that selfvox does not have.
    """
    name = network.get("name") if isinstance(network, Mapping) else network
    return read_plans(name) if isinstance(name, str) and is_plans_name(name) else None


def plans_divisor(network: Network | None) -> tuple[int, ...] | None:
    """What the edges of a crop are multiples of in the plans of nnU-Net that are named, by axis."""
    plans = plans_of(network)
    if plans is None:
        return None
    by_axis = zip(*plans.network["strides"], strict=True)
    return tuple(math.prod(strides) for strides in by_axis)


def _settings_of_plans(settings: Mapping[str, Any], spatial_dims: int | None) -> dict[str, Any]:
    """The settings of the network in a file of plans."""
    if extra := sorted(settings.keys() - {"name"}):
        raise UsageError(
            f"network: {settings['name']} names its own settings; leave --network.{extra[0]} out"
        )
    plans = read_plans(str(settings["name"]))
    if spatial_dims not in (None, len(plans.axes)):
        raise UsageError(
            f"network: {plans.name} is a network of {len(plans.axes)}D scans, and these are "
            f"{spatial_dims}D; name another configuration, such as {plans.file}:2d"
        )
    return plans.network


def build_encoder(
    spec: Mapping[str, Any] | nn.Module, spatial_dims: int, in_channels: int
) -> Encoder:
    """Make an encoder, with fresh weights, from what `plan_encoder` resolved.

    Args:
        spec: the plan; or a module, which is returned with the weights that it has: as it is where
            it is an `Encoder`, else wrapped, if it returns a list of feature maps.
        spatial_dims: 2 or 3.
        in_channels: of the images.

    Raises:
        UsageError: the network does not exist, or does not take these settings or dimensions.
    """
    if isinstance(spec, nn.Module):
        return wrap_module(spec, spatial_dims, in_channels)
    return _find_family(spec).build(_without_plugin(spec), spatial_dims, in_channels)


def check_input(spec: Mapping[str, Any], edges: Sequence[int]) -> None:
    """Refuse inputs that are too small for the encoder of a plan.

    Args:
        spec: what `plan_encoder` resolved; a module from Python is not checked.
        edges: of the inputs, in voxels.

    Raises:
        UsageError: they are too small; says what to do.
    """
    if not is_python_class(spec):
        _find_family(spec).check_input(_without_plugin(spec), edges)


def load_encoder(run: Path, network: nn.Module | None = None) -> tuple[Encoder, Card]:
    """The encoder of a run with its weights, and its card.

    Args:
        run: a pre-training run, its `encoder/` folder, or a fine-tuning run.
        network: gets the weights; needed where the run was given a module of one's own.

    Raises:
        WeightsError: it is missing or damaged, or its weights do not fit.
        UsageError: its network is of a library that is not installed, or of one's own.
    """
    tensors, card = read_encoder(run)
    name = str(card.network["name"])
    if network is None and is_python_class(card.network):
        raise UsageError(
            f"{run}: its encoder is of the Python class {name}; load it in Python, with an object "
            "of this class: selfvox.load_encoder(run, network=...)"
        )
    encoder = build_encoder(network or card.network, card.spatial_dims, card.in_channels)
    load_strictly(encoder, tensors, f"{run}")
    return encoder, card


def is_python_class(spec: Mapping[str, Any]) -> bool:
    """Whether an encoder was passed as an object: `plan_encoder` then records its class alone."""
    return set(spec) == {"name"} and _is_class_name(str(spec["name"]))


def _is_class_name(name: str) -> bool:
    """Whether it is `module:Class`, and not `library:NAME` of a known library."""
    module, colon, _ = name.partition(":")
    names_a_module = "." in module or module == "__main__" or module in sys.modules
    return bool(colon) and names_a_module and _family_of(name) is None


def _find_family(settings: Mapping[str, Any]) -> Family:
    name = str(settings["name"])
    family = _family_of(name)
    if family is not None:
        return family
    if _is_class_name(name):
        raise UsageError(
            f"network: {name} is a class that was passed to Python as an object and has no name; "
            "pass it again from Python"
        )
    if missing := plugins.missing_plugin(name, settings.get("plugin")):
        raise UsageError(f"network: {missing}")
    raise UsageError(f"network: no encoder is called '{name}'{did_you_mean(name, encoder_names())}")


def _family_of(name: str) -> Family | None:
    """The family that a name belongs to; None where there is none."""
    built_in = {family.usage: family for family in FAMILIES}
    try:
        plugin = plugins.find_plugin(plugins.ENCODERS, name, built_in)
    except UsageError as error:
        raise UsageError(f"network: {error}") from None
    if plugin is not None:
        return PluginEncoder(plugin)
    library, colon, _ = name.partition(":")
    return built_in.get(f"{library}:NAME" if colon else name)


def _without_plugin(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "plugin"}
