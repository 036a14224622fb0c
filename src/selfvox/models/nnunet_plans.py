"""nnU-Net's plans: the network, patch, spacing and intensities of a configuration, by our axes.

Arrays of selfvox have the axes x, y, z. nnU-Net reads volumes as z, y, x and then reorders these by
`transpose_forward` of its plans; pictures have rows and columns in both. A file of plans comes from
others: names of classes in it are compared with a list, and never imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.errors import DataError, UsageError, did_you_mean, printable
from selfvox.models.unet import DECODER_BLOCKS, KERNEL
from selfvox.runs.strict_json import read_json

DEFAULT_CONFIGURATION = "3d_fullres"
SLICES = ("sagittal", "coronal", "axial")  # perpendicular to x, y, z
_NAME = re.compile(r"(?P<file>.+\.json)(?::(?P<configuration>[^:/\\]+))?", re.IGNORECASE)
_CLASSES = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "plain",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "residual",
}
_BLOCKS = {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}
_NORMS = {"InstanceNorm": "instance", "BatchNorm": "batch"}
# what selfvox's networks always have; null is torch's default
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_bias": (True,),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True}, {"affine": True}),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": (
        None,
        {},
        {"inplace": True},
        {"inplace": False},
        {"inplace": True, "negative_slope": 0.01},
    ),
}
_READ = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "norm_op")


@dataclass(frozen=True, kw_only=True)
class NnunetPlans:
    """One configuration of a file of plans; all that is per axis is in the order of our axes."""

    file: Path
    configuration: str
    plans_name: str  # nnU-Net's, such as nnUNetPlans
    network: dict[str, Any]  # settings of a U-Net encoder: `Architecture`
    axes: tuple[int, ...]  # ours for each of nnU-Net's: x is 0
    slices: str | None  # of a 2D network: which slices of the volumes it sees
    patch: tuple[int, ...]  # edges in voxels
    spacing_mm: tuple[float, ...] | None  # None: of a 2D network, or not in the plans
    normalization: tuple[str, ...]  # nnU-Net's scheme of each channel
    foreground: tuple[Mapping[str, float], ...]  # numbers of each channel's values

    @property
    def name(self) -> str:
        """As `--network` names them."""
        return f"{self.file}:{self.configuration}"


def is_plans_name(name: str) -> bool:
    """Whether a network is named by a file of plans: `PLANS.json`, or `PLANS.json:2d`."""
    return _NAME.fullmatch(name) is not None


def read_plans(name: str) -> NnunetPlans:
    """Read one configuration of a file of plans.

    Args:
        name: `PLANS.json`, or `PLANS.json:CONFIGURATION`; 3d_fullres by default.

    Raises:
        DataError: the file is missing, or not one of plans.
        UsageError: an unknown configuration, or a network that selfvox does not have.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    file = Path(match["file"]).expanduser()
    plans = read_json(file)
    origin = printable(file)
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise DataError(
            f"{origin}: has no 'configurations'; name nnU-Net's plans (nnUNetPlans.json)"
        )
    configurations = plans["configurations"]
    configuration = match["configuration"] or DEFAULT_CONFIGURATION
    if configuration not in configurations:
        raise UsageError(
            f"network: {origin} has no configuration '{printable(configuration)}'"
            f"{did_you_mean(configuration, configurations)}"
        )
    values = _inherit(configurations, configuration, origin)
    origin = f"{origin}, {configuration}"
    architecture = _entry(values, "architecture", dict, origin)
    settings = architecture_settings(architecture, origin)
    axes, slices = _our_axes(plans, len(settings["strides"][0]), origin)
    for key in ("strides", "kernels"):
        if key in settings:
            settings[key] = [to_our_order(level, axes) for level in settings[key]]
    patch = _numbers(values, "patch_size", len(axes), origin)
    spacing = None
    if len(axes) == 3:
        spacing = to_our_order(_numbers(values, "spacing", 3, origin), axes)
    return NnunetPlans(
        file=file,
        configuration=configuration,
        plans_name=str(plans.get("plans_name", "nnUNetPlans")),
        network=settings,
        axes=axes,
        slices=slices,
        patch=tuple(int(edge) for edge in to_our_order(patch, axes)),
        spacing_mm=None if spacing is None else tuple(map(float, spacing)),
        normalization=tuple(map(str, values.get("normalization_schemes", ()))),
        foreground=_foreground(plans),
    )


def to_our_order(values: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """Values by nnU-Net's axes in the order of ours."""
    return [values[axes.index(axis)] for axis in sorted(axes)]


def to_nnunet_order(values: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """Values by our axes in the order of nnU-Net's."""
    ranks = {axis: rank for rank, axis in enumerate(sorted(axes))}
    return [values[ranks[axis]] for axis in axes]


def kernel_order(axes: Sequence[int]) -> tuple[int, ...]:
    """How the axes of a kernel (out, in, *space) of ours are permuted for nnU-Net."""
    return (0, 1, *to_nnunet_order(range(2, 2 + len(axes)), axes))


def _inherit(configurations: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    """A configuration with what it inherits from others.

    Raises:
        DataError: it inherits from itself, or from one that is not there.
    """
    chain: list[str] = []
    values: dict[str, Any] = {}
    while True:
        current = configurations.get(name)
        if name in chain or not isinstance(current, dict):
            raise DataError(
                f"{origin}: 'inherits_from' leads to {printable(name)}, which is not there or was "
                "there before; plan again"
            )
        chain.append(name)
        values = {**current, **values}
        parent = current.get("inherits_from")
        if parent is None:
            return values
        name = str(parent)


def architecture_settings(architecture: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The settings of the encoder, axes in nnU-Net's order.

    Raises:
        UsageError: a network that selfvox does not have.
        DataError: an entry is missing or of another type.
    """
    class_name = architecture.get("network_class_name")
    name = _CLASSES.get(str(class_name))
    if name is None:
        raise UsageError(
            f"network: {origin} is of the class {printable(str(class_name))}, and selfvox has "
            "nnU-Net's PlainConvUNet and ResidualEncoderUNet; take plans of one of them"
        )
    arguments = _entry(architecture, "arch_kwargs", dict, origin)
    levels = _entry(arguments, "n_stages", int, origin)
    for key, value in arguments.items():
        if key in _READ or key in (_BLOCKS[name], "n_conv_per_stage_decoder", "deep_supervision"):
            continue
        if value not in _FIXED.get(key, (None, False)):
            raise UsageError(
                f"network: {origin} has {printable(key)} {printable(str(value))[:60]}, which "
                "selfvox's networks do not have; take other plans"
            )
    dims = str(arguments.get("conv_op")).removeprefix("torch.nn.modules.conv.")
    dims = dims.removeprefix("torch.nn.")
    norm = str(arguments.get("norm_op")).rpartition(".")[2].removesuffix(dims[-2:])
    if dims not in ("Conv2d", "Conv3d") or norm not in _NORMS:
        raise UsageError(
            f"network: {origin} has the layers {printable(str(arguments.get('conv_op')))} and "
            f"{printable(str(arguments.get('norm_op')))}; known are Conv2d and Conv3d with "
            "InstanceNorm or BatchNorm"
        )
    axes = int(dims[-2])
    strides = _per_axis(arguments, "strides", levels, axes, origin)
    kernels = _per_axis(arguments, "kernel_sizes", levels, axes, origin)
    settings: dict[str, Any] = {
        "name": name,
        "channels": _per_level(arguments, "features_per_stage", levels, origin),
        "blocks": _per_level(arguments, _BLOCKS[name], levels, origin),
        "norm": _NORMS[norm],
        "strides": strides,
    }
    decoder = _per_level(arguments, "n_conv_per_stage_decoder", levels - 1, origin)
    # a setting that is at its default is left out of cards
    if any(edge != KERNEL for level in kernels for edge in level):
        settings["kernels"] = kernels
    if set(decoder) != {DECODER_BLOCKS}:
        settings["decoder_blocks"] = decoder
    return settings


def _our_axes(
    plans: Mapping[str, Any], axes: int, origin: str
) -> tuple[tuple[int, ...], str | None]:
    """Our axis for each of nnU-Net's, and the slices of a 2D network of volumes."""
    forward = plans.get("transpose_forward", [0, 1, 2])
    if not isinstance(forward, list) or sorted(map(str, forward)) != ["0", "1", "2"]:
        raise DataError(f"{origin}: 'transpose_forward' is not an order of three axes; plan again")
    ours = tuple(2 - int(axis) for axis in forward)
    if axes == 3:
        return ours, None
    if "NaturalImage2D" in str(plans.get("image_reader_writer")):
        return (0, 1), None
    # the slices that nnU-Net cuts are perpendicular to its first axis
    return ours[1:], SLICES[ours[0]]


def _foreground(plans: Mapping[str, Any]) -> tuple[Mapping[str, float], ...]:
    """The numbers of the values of each channel, in the order of the channels."""
    properties = plans.get("foreground_intensity_properties_per_channel")
    if not isinstance(properties, dict):
        return ()
    channels = sorted(properties, key=lambda channel: (len(channel), channel))
    return tuple(properties[channel] for channel in channels)


def _entry(values: Mapping[str, Any], key: str, kind: type, origin: str) -> Any:
    value = values.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        remedy = "plan again with nnU-Net 2.5 or later" if key == "architecture" else "plan again"
        raise DataError(f"{origin}: has no '{key}', or of another type; {remedy}")
    return value


def _numbers(values: Mapping[str, Any], key: str, count: int, origin: str) -> list[float]:
    numbers: list[float] = _entry(values, key, list, origin)
    if len(numbers) != count or not all(isinstance(x, int | float) and x > 0 for x in numbers):
        raise DataError(f"{origin}: '{key}' are not {count} positive numbers; plan again")
    return numbers


def _per_level(values: Mapping[str, Any], key: str, levels: int, origin: str) -> list[int]:
    """A whole number for each level; one alone counts for all."""
    numbers = values.get(key)
    if isinstance(numbers, int):
        return [numbers] * levels
    if not isinstance(numbers, list) or len(numbers) != levels:
        raise DataError(
            f"{origin}: '{key}' is not a number for each of {levels} levels; plan again"
        )
    return numbers


def _per_axis(
    values: Mapping[str, Any], key: str, levels: int, axes: int, origin: str
) -> list[list[int]]:
    """A whole number for each level and axis; one for all axes may stand for them."""
    rows = values.get(key)
    if isinstance(rows, list) and len(rows) == levels:
        rows = [[row] * axes if isinstance(row, int) else row for row in rows]
        if all(isinstance(row, list) and len(row) == axes for row in rows):
            return [list(row) for row in rows]
    raise DataError(
        f"{origin}: '{key}' are not {axes} numbers for each of {levels} levels; plan again"
    )
