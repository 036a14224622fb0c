"""nnU-Net: weights for its option `-pretrained_weights`, checked against the plans they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from selfvox.errors import UsageError
from selfvox.models.nnunet_plans import NnunetPlans, kernel_order, to_nnunet_order
from selfvox.models.segmenter import OUTPUT_LAYERS
from selfvox.models.unet import (
    PLAIN,
    RESIDUAL,
    Architecture,
    he_initialise,
    kernel_edges,
    norm_layer,
)
from selfvox.ops.planes import AXES
from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.card import Card, EncoderCard, SegmenterCard
from selfvox.runs.weights import (
    adapt_first_convolutions,
    copy_strictly,
    read_encoder,
    read_network,
    state_tensors,
)
from selfvox.settings.options import resolve

NORM_NAMES = {"instance": "InstanceNorm", "batch": "BatchNorm"}
CLASSES = 2  # of the output layers in the file, which nnU-Net replaces by its own
NETWORKS = {PLAIN.name: PlainConvUNet, RESIDUAL.name: ResidualEncoderUNet}
BLOCKS = {PLAIN.name: "n_conv_per_stage", RESIDUAL.name: "n_blocks_per_stage"}


@dataclass(frozen=True)
class UNetWeights:
    """The weights of a run with a U-Net encoder."""

    card: Card
    architecture: Architecture
    encoder: dict[str, Tensor]  # by its names in nnU-Net's encoder
    decoder: dict[str, Tensor] | None  # by its names in nnU-Net's decoder, without output layers
    encoder_origin: str  # in words
    decoder_origin: str


def read_unet(run: Path) -> UNetWeights:
    """The weights of a run, if its network is a U-Net of nnU-Net's layers.

    Raises:
        WeightsError: the run has none, or they are damaged.
        UsageError: the network is another one.
    """
    tensors, card = read_encoder(run)
    if card.network["name"] not in NETWORKS:
        raise UsageError(
            f"{run}: has the network {card.network['name']}, and nnU-Net has plain and residual "
            "U-Nets; pre-train with --network nnUNetPlans.json"
        )
    architecture = resolve(Architecture, card.network, prefix="network.")
    decoder = {}
    # that of a pre-training kept nnU-Net from learning in a short trial (docs/results-log.md)
    if isinstance(card, SegmenterCard) and not card.is_linear:
        network, _ = read_network(run)
        decoder = {
            name.removeprefix("decoder."): tensor
            for name, tensor in network.items()
            if name.startswith("decoder.") and not name.startswith(f"decoder.{OUTPUT_LAYERS}")
        }
    return UNetWeights(
        card=card,
        architecture=architecture,
        encoder={name.removeprefix("net."): tensor for name, tensor in tensors.items()},
        decoder=decoder or None,
        encoder_origin=_learned_from(card),
        decoder_origin=_learned_from(card) if decoder else "random",
    )


def write_nnunet(
    weights: UNetWeights, plans: NnunetPlans, out: Path, channels: int | None, origin: str
) -> dict[str, Tensor]:
    """Write the weights as `-pretrained_weights` of nnU-Net reads them.

    Args:
        weights: of the run.
        plans: of the data set that nnU-Net will be trained on.
        out: the file, `.pth`.
        channels: of these scans; None: as the run's.
        origin: the run, for messages.

    Returns:
        The weights by nnU-Net's names.

    Raises:
        UsageError: the network of the plans is another one.
    """
    check_same_network(weights, plans, origin)
    # of the plans: without a decoder in the run, theirs may have other convolutions
    architecture = resolve(Architecture, plans.network, prefix="network.")
    channels = channels or weights.card.in_channels
    state = nnunet_state(weights, architecture, plans.axes, channels, origin)
    description = {
        "weights_sha256": weights.card.sha256,
        "encoder": weights.encoder_origin,
        "decoder": weights.decoder_origin,
        "axes": "".join(AXES[axis] for axis in plans.axes),
    }
    with atomic_write(out) as temporary:
        torch.save({"network_weights": state, "selfvox": description}, temporary)
    return state


def check_same_network(weights: UNetWeights, plans: NnunetPlans, origin: str) -> None:
    """Refuse weights of another network than that of the plans.

    Raises:
        UsageError: the first setting that differs.
    """
    if weights.card.slices != plans.slices:
        here = weights.card.slices or "no"
        raise UsageError(
            f"plans: {plans.name} is of {plans.slices or 'no'} slices, and {origin} was trained on "
            f"{here} slices; name the configuration that fits"
        )
    theirs = resolve(Architecture, plans.network, prefix="network.")
    ours = weights.architecture
    names = ["name", "channels", "blocks", "norm", "strides", "kernels"]
    # a decoder that is not exported has no shape to fit
    if weights.decoder is not None:
        names.append("decoder_blocks")
    for name in names:
        pair = [_comparable(architecture, name) for architecture in (ours, theirs)]
        if pair[0] != pair[1]:
            raise UsageError(
                f"plans: {plans.name} has {name} {pair[1]}, and the network of {origin} has "
                f"{pair[0]}; pre-train with --network {plans.name}"
            )


def nnunet_state(
    weights: UNetWeights,
    architecture: Architecture,
    axes: Sequence[int],
    channels: int,
    origin: str,
) -> dict[str, Tensor]:
    """The state of nnU-Net's network with these weights, under all names that it has for them.

    What the run does not have is drawn from the run's seed, as nnU-Net draws it.

    Args:
        weights: of the run.
        architecture: of the network, as that of the weights.
        axes: our axis for each of nnU-Net's.
        channels: of the scans; where the run's are others, weights of the first convolution are
            averaged.
        origin: the run, for messages.

    Raises:
        WeightsError: the weights do not fit the network that their card names.
        UsageError: nnU-Net's plans have no such norm.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.card.seed)
        network = nnunet_network(architecture, axes, channels)
    order = kernel_order(axes)
    spatial = len(order)
    parts = {"encoder": weights.encoder, "decoder": weights.decoder}
    for part, tensors in parts.items():
        if tensors is None:
            continue
        module = getattr(network, part)
        # a decoder of nnU-Net has the encoder too
        targets = {
            name: tensor
            for name, tensor in state_tensors(module).items()
            if not name.startswith("encoder.") and not name.startswith(OUTPUT_LAYERS)
        }
        turned = {
            name: tensor.permute(order) if tensor.ndim == spatial else tensor
            for name, tensor in tensors.items()
        }
        if part == "encoder":
            turned = adapt_first_convolutions(turned, module, "mean")
        copy_strictly(targets, turned, f"{origin}, its {part}")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def nnunet_network(
    architecture: Architecture, axes: Sequence[int], channels: int, classes: int = CLASSES
) -> nn.Module:
    """nnU-Net's own network of an architecture, with random weights, by nnU-Net's axes.

    Raises:
        UsageError: nnU-Net's plans have no such norm.
    """
    network: nn.Module = NETWORKS[architecture.name](
        channels,
        num_classes=classes,
        deep_supervision=False,
        **architecture_arguments(architecture, axes),
    )
    return network.apply(he_initialise)


def architecture_arguments(architecture: Architecture, axes: Sequence[int]) -> dict[str, Any]:
    """The arguments of nnU-Net's network for an architecture, by nnU-Net's axes.

    Raises:
        UsageError: nnU-Net's plans have no such norm.
    """
    if architecture.norm not in NORM_NAMES:
        raise UsageError(
            f"network.norm: the run has {architecture.norm} norm, and networks of nnU-Net have "
            "instance norm; pre-train with --network nnUNetPlans.json, or --network.norm instance"
        )
    d = len(axes)
    levels = len(architecture.channels)
    norm, norm_arguments = norm_layer(architecture.norm, d)
    assert architecture.strides is not None
    kernels = kernel_edges(architecture.kernels, levels, d)
    return {
        "n_stages": levels,
        "features_per_stage": list(architecture.channels),
        "conv_op": nn.Conv3d if d == 3 else nn.Conv2d,
        "kernel_sizes": [to_nnunet_order(level, axes) for level in kernels],
        "strides": [to_nnunet_order(level, axes) for level in architecture.strides],
        BLOCKS[architecture.name]: _per_level(architecture.blocks, levels),
        "n_conv_per_stage_decoder": _per_level(architecture.decoder_blocks, levels - 1),
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": norm_arguments,
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


def _per_level(blocks: int | Sequence[int], levels: int) -> list[int]:
    return [blocks] * levels if isinstance(blocks, int) else list(blocks)


def _comparable(architecture: Architecture, name: str) -> Any:
    """A setting of an architecture, in the form in which equal networks have equal ones."""
    levels = len(architecture.channels)
    value = getattr(architecture, name)
    if name == "blocks":
        return _per_level(value, levels)
    if name == "decoder_blocks":
        return _per_level(value, levels - 1)
    if name == "kernels":
        assert architecture.strides is not None
        return kernel_edges(value, levels, len(architecture.strides[0]))
    if name in ("strides", "channels"):
        return [list(item) if isinstance(item, tuple) else item for item in value]
    return value


def _learned_from(card: Card) -> str:
    return f"pre-trained by {card.task['name']}" if isinstance(card, EncoderCard) else "fine-tuned"
