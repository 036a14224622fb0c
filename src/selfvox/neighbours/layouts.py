"""Layouts of weights from elsewhere: which network a file has, and what its authors say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.networks.nets.resnet import resnet_params
from torch import Tensor

from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import RESENC_SETTINGS, network_settings, plans_of
from selfvox.models.nnunet_plans import architecture_settings
from selfvox.neighbours.foreign_file import ForeignFile

Z_Y_X = (2, 1, 0)  # our axis for each axis of arrays as SimpleITK gives them
HOUNSFIELD = (-175.0, 250.0)  # window of the CT weights, which becomes 0 to 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Weights that one group published, and what they were trained on."""

    title: str
    licence: str
    citation: str
    scans: str  # what the scans were, in words
    kind: str  # of the intensity: mri or ct
    window: tuple[float, float] | None = None  # of CT, in Hounsfield units
    spacing_mm: float | None = None
    crop: int = 96  # edge in voxels


LAYOUTS: dict[str, Layout] = {
    "openmind": Layout(
        title="OpenMind",
        licence="CC BY 4.0 by its model cards",
        citation="Wald et al. 2025, An OpenMind for 3D medical vision self-supervised learning",
        scans="MRI of heads at 1 mm, z-score over the whole scan",
        kind="mri",
        spacing_mm=1.0,
        crop=160,
    ),
    "medicalnet": Layout(
        title="MedicalNet",
        licence="MIT",
        citation="Chen et al. 2019, Med3D: transfer learning for 3D medical image analysis",
        scans="MRI and CT, z-score over voxels above 0, resized to 448 x 448 x 56 voxels",
        kind="mri",
    ),
    "swinunetr": Layout(
        title="Swin UNETR, self-supervised",
        licence="Apache-2.0 as far as known",
        citation="Tang et al. 2022, Self-supervised pre-training of Swin transformers",
        scans="CT from -175 to 250 HU at 1.5 mm",
        kind="ct",
        window=HOUNSFIELD,
        spacing_mm=1.5,
    ),
    "voco": Layout(
        title="VoCo",
        licence="Apache-2.0",
        citation="Wu et al. 2024, VoCo: a volume contrastive learning framework",
        scans="CT from -175 to 250 HU at 1.5 mm",
        kind="ct",
        window=HOUNSFIELD,
        spacing_mm=1.5,
    ),
    "nnunet": Layout(
        title="nnU-Net",
        licence="that of the file, which selfvox does not know",
        citation="Isensee et al. 2021, nnU-Net",
        scans="as the plans say",
        kind="mri",
    ),
    "torch": Layout(
        title="a network of your own",
        licence="that of the file, which selfvox does not know",
        citation="",
        scans="as you prepare them",
        kind="mri",
    ),
}


@dataclass(frozen=True)
class ForeignEncoder:
    """The network that a file has weights of, and these by the names inside our encoder."""

    network: Mapping[str, Any]  # settings
    tensors: dict[str, Tensor]
    left_out: dict[str, str]  # names, each with the reason
    axes: Sequence[int] | None = None  # our axis for each axis of its kernels; None: as ours


def find_encoder(layout: str, foreign: ForeignFile, network: Any) -> ForeignEncoder:
    """The encoder in a file of this layout.

    Args:
        layout: its name.
        foreign: the file.
        network: the setting, of layouts that need it: plans, or a network.

    Raises:
        UsageError: the setting is missing, or not for this layout.
        WeightsError: the file has no such encoder.
    """
    needs_network = layout in ("nnunet", "torch")
    if needs_network and network is None:
        remedy = "nnUNetPlans.json" if layout == "nnunet" else "plain, with its settings"
        raise UsageError(f"network: say which one the file has weights of, such as {remedy}")
    if network is not None and not needs_network:
        raise UsageError(f"network: --layout {layout} knows it; leave --network out")
    if layout == "openmind":
        return _find_nnssl(foreign)
    if layout == "medicalnet":
        return _find_resnet(foreign)
    if layout in ("swinunetr", "voco"):
        return _find_swin(foreign)
    plans = plans_of(network)
    if plans is not None:
        return _unet_encoder(foreign, plans.network, plans.axes)
    if layout == "nnunet":
        raise UsageError("network: is not a file of plans; name nnUNetPlans.json of this network")
    return _plain_encoder(foreign, network_settings(network))


def _find_nnssl(foreign: ForeignFile) -> ForeignEncoder:
    """OpenMind's checkpoints of nnssl: a residual U-Net, of which the plan has the settings."""
    plan = foreign.descriptions.get("nnssl_adaptation_plan") or {}
    described = plan.get("architecture_plans") or {}
    name = str(described.get("arch_class_name", "ResEncL"))
    if name.startswith("Primus"):
        raise UsageError(
            f"{foreign.file}: is a {name}, a transformer without a pyramid of maps; take a ResEncL"
        )
    settings = dict(RESENC_SETTINGS)
    settings["strides"] = [[1] * 3, *[[2] * 3] * (len(settings["channels"]) - 1)]
    if described.get("arch_kwargs") is not None:
        name = {"ResEncL": "ResidualEncoderUNet"}.get(name, name)
        settings = architecture_settings(
            {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
                "arch_kwargs": described["arch_kwargs"],
            },
            f"{foreign.file}",
        )
        for key in ("strides", "kernels"):
            if key in settings:
                settings[key] = [level[::-1] for level in settings[key]]
    return _unet_encoder(foreign, settings, Z_Y_X)


def _unet_encoder(
    foreign: ForeignFile, settings: Mapping[str, Any], axes: Sequence[int]
) -> ForeignEncoder:
    """nnU-Net's names: `encoder.X`, with aliases of the same tensors."""
    tensors = {}
    left_out = {}
    for name, tensor in foreign.tensors.items():
        if ".all_modules." in name or name.startswith("decoder.encoder."):
            left_out[name] = "another name of a tensor"
        elif name.startswith("encoder."):
            tensors[f"net.{name.removeprefix('encoder.')}"] = tensor
        else:
            left_out[name] = "decoder or head"
    return ForeignEncoder(settings, tensors, left_out, axes)


def _find_resnet(foreign: ForeignFile) -> ForeignEncoder:
    """MedicalNet's residual networks: the depth follows from the names and shapes."""
    tensors = {}
    left_out = {}
    for name, tensor in foreign.tensors.items():
        if name.startswith(("conv1.", "bn1.", "layer")):
            tensors[f"net.{name}"] = tensor
        else:
            left_out[name] = "decoder or head"
    blocks = [_count_blocks(tensors, f"net.layer{level}.") for level in (1, 2, 3, 4)]
    kind = "bottleneck" if "net.layer1.0.conv3.weight" in tensors else "basic"
    for name, (block, counts, *_) in resnet_params.items():
        if (block, counts) == (kind, blocks):
            settings = {"name": "monai:ResNetFeatures", "model_name": name}
            return ForeignEncoder(settings, tensors, left_out, Z_Y_X)
    raise WeightsError(
        f"{foreign.file}: has the names of no residual network of MedicalNet (resnet_10.pth to "
        "resnet_200.pth); is it another layout?"
    )


def _count_blocks(tensors: Mapping[str, Tensor], level: str) -> int:
    """How many blocks a level has, by the numbers in the names."""
    return len({name.split(".")[2] for name in tensors if name.startswith(level)})


def _find_swin(foreign: ForeignFile) -> ForeignEncoder:
    """The Swin transformer of MONAI's SwinUNETR, under NVIDIA's names or MONAI's."""
    prefixes = ("swinViT.", "swin_vit.")
    is_named = any(name.startswith(prefixes) for name in foreign.tensors)
    tensors = {}
    left_out = {}
    for name, tensor in foreign.tensors.items():
        plain = name
        for prefix in prefixes:
            plain = plain.removeprefix(prefix)
        is_of_transformer = plain.startswith(("patch_embed.", "layers"))
        if not is_of_transformer or (is_named and plain == name):
            left_out[name] = "decoder or head"
            continue
        plain = plain.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")
        tensors[f"net.{plain}"] = tensor
    weight = tensors.get("net.patch_embed.proj.weight")
    if weight is None:
        raise WeightsError(
            f"{foreign.file}: has no Swin transformer (patch_embed.proj); is it another layout?"
        )
    settings = {
        "name": "monai:SwinTransformer",
        "feature_size": int(weight.shape[0]),
        "use_v2": any(name.startswith("net.layers1c.") for name in tensors),
    }
    return ForeignEncoder(settings, tensors, left_out)


def _plain_encoder(foreign: ForeignFile, settings: Mapping[str, Any]) -> ForeignEncoder:
    """A network that selfvox has, under its own names, or those of a U-Net's encoder."""
    tensors = {}
    for name, tensor in foreign.tensors.items():
        plain = name.removeprefix("encoder.")
        tensors[plain if plain.startswith("net.") else f"net.{plain}"] = tensor
    return ForeignEncoder(settings, tensors, {})
