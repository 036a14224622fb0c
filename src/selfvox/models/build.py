"""Build an encoder from the `network` setting."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.errors import UsageError, did_you_mean
from selfvox.models.adapters import FeatureNetwork, _maker
from selfvox.models.encoder import Encoder, encoder_names
from selfvox.models.unet import Architecture, UNetEncoder, _strides
from selfvox.runs.weights import read_encoder
from selfvox.settings.options import as_dict, resolve


def plan_encoder(
    network: str | Mapping[str, Any], crop: Sequence[int], spacing_mm: Sequence[float]
) -> dict[str, Any]:
    """Resolve the `network` setting for crops of this size: all that `build` needs to make the encoder again.

    A U-Net is given as many levels as its channels name and the crop allows: every level halves the axes whose spacing
    is below twice the finest, and no map gets smaller than 4 voxels.

    Raises:
        UsageError: an unknown network or setting.
    """
    given = network_settings(network, len(crop))
    if ":" in given["name"]:
        return given
    architecture = resolve(Architecture, given, prefix="network.")
    if architecture.strides is None:
        strides = _strides(len(architecture.channels), crop, spacing_mm)
        given = {
            **as_dict(architecture),
            "channels": architecture.channels[: len(strides)],
            "strides": strides,
        }
        architecture = resolve(Architecture, given, prefix="network.")
    elif [len(level) for level in architecture.strides] != [len(crop)] * len(architecture.channels):
        raise UsageError(
            f"network.strides: are no {len(crop)} numbers for each of the {len(architecture.channels)} levels; "
            "leave them out, or give as many as network.channels"
        )
    return as_dict(architecture)


def check_network(network: str | Mapping[str, Any]) -> None:
    """Refuse an unknown U-Net or setting of one, or a run without an encoder, before any scan is read."""
    given = network_settings(network)
    kind, colon, name = given["name"].partition(":")
    if colon:
        _maker(kind, name)
    else:
        resolve(Architecture, given, prefix="network.")


def network_settings(
    network: str | Mapping[str, Any], spatial_dims: int | None = None
) -> dict[str, Any]:
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
        raise UsageError(
            "network.pretrained: weights of others are not fetched, networks begin random; leave it out"
        )
    if ":" in name or name in ("plain", "residual"):
        return given
    run = Path(os.path.expanduser(name))
    if not name or not run.is_dir():
        raise UsageError(
            f"network: no encoder is called '{name}'{did_you_mean(name, encoder_names())}"
        )
    if more := sorted(given.keys() - {"name"}):
        raise UsageError(f"network: {run} names its own settings; leave --network.{more[0]} out")
    _, card = read_encoder(run)
    if spatial_dims not in (None, card["spatial_dims"]):
        raise UsageError(
            f"network: {run} is a network of {card['spatial_dims']}D scans, and these are {spatial_dims}D; name another"
        )
    return dict(card["network"])


def build_encoder(spec: Mapping[str, Any], spatial_dims: int, in_channels: int) -> Encoder:
    """Make an encoder, with fresh weights, from what `plan` resolved.

    Raises:
        UsageError: the network does not exist, or does not take these settings or dimensions.
    """
    kind, _, name = str(spec["name"]).partition(":")
    if not name:
        return UNetEncoder(
            resolve(Architecture, spec, prefix="network."), spatial_dims, in_channels
        )
    if kind == "timm" and spatial_dims != 2:
        raise UsageError(
            f"network: timm:{name} is a 2D network and the scans are 3D; take a monai: or U-Net encoder"
        )
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
