"""nnssl: checkpoints for the command `nnUNetv2_train_pretrained` of nnU-Net's development version.

Such a file has an adaptation plan: the architecture, and how the scans of the pre-training were
prepared. It contains plain values and tensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfvox.errors import UsageError
from selfvox.models.nnunet_plans import to_nnunet_order
from selfvox.neighbours.nnunet import (
    NETWORKS,
    UNetWeights,
    architecture_arguments,
    nnunet_state,
)
from selfvox.runs.atomic_files import atomic_write

AXES = (2, 1, 0)  # of SimpleITK, z, y, x
CONFIGURATION = "onemmiso"  # only the first one of a plan is read, whatever its name
SCHEMES = {"mri": "ZScoreNormalization", "ct": "CTNormalization"}
# what nnU-Net resamples with
RESAMPLING = {
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "mask": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
}
FIRST_LAYERS = {
    "plain": ("encoder.stages.0", "encoder.stages.0.0.convs.0"),
    "residual": ("encoder.stem", "encoder.stem.convs.0"),
}


def write_nnssl(weights: UNetWeights, out: Path, channels: int | None, origin: str) -> None:
    """Write an encoder as a checkpoint of nnssl.

    Args:
        weights: of the run.
        out: the file, `.pth`.
        channels: of the scans that it is for; None: as the run's.
        origin: the run, for messages.

    Raises:
        UsageError: the network is 2D, or of a norm that nnU-Net's networks do not have.
    """
    card = weights.card
    if card.spatial_dims != 3:
        raise UsageError(f"{origin}: is a 2D network, and checkpoints of nnssl are of 3D ones")
    channels = channels or card.in_channels
    state = nnunet_state(weights, weights.architecture, AXES, channels, origin)
    arguments = _plain_arguments(architecture_arguments(weights.architecture, AXES))
    name = weights.architecture.name
    stem, first = FIRST_LAYERS[name]
    plan = {
        "architecture_plans": {
            "arch_class_name": NETWORKS[name].__name__,
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
        },
        "pretrain_plan": _pretrain_plan(card.recipe, card.crop),
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": to_nnunet_order(card.crop, AXES),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{first}.conv", f"{first}.all_modules.0"],
        "key_to_lpe": None,
        "architecture_kwargs": arguments,
    }
    content = {
        "network_weights": {
            key: tensor for key, tensor in state.items() if key.startswith("encoder.")
        },
        "nnssl_adaptation_plan": plan,
        "citations": [],
        "trainer_name": "selfvox",
    }
    with atomic_write(out) as temporary:
        torch.save(content, temporary)


def _plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network with its classes as texts, as plans have them."""
    return {key: _dotted(value) for key, value in arguments.items()}


def _dotted(value: Any) -> Any:
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    return f"{value.__module__}.{value.__qualname__}" if is_class else value


def _pretrain_plan(recipe: Mapping[str, Any], crop: Any) -> dict[str, Any]:
    """How the scans of the pre-training were prepared, in the words of nnssl."""
    spacing = recipe["spacing_mm"]
    spacing = None if spacing is None else [float(mm) for mm in to_nnunet_order(spacing, AXES)]
    schemes = [SCHEMES.get(intensity["kind"], SCHEMES["mri"]) for intensity in recipe["intensity"]]
    style = "noresample" if spacing is None else "median"
    if spacing == [1.0, 1.0, 1.0]:
        style = CONFIGURATION
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"nnsslPlans_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": style,
        "normalization_schemes": schemes,
        "use_mask_for_norm": False,
        "spacing": spacing,
        "patch_size": to_nnunet_order(crop, AXES),
    }
    for kind, arguments in RESAMPLING.items():
        configuration[f"resampling_fn_{kind}"] = function
        configuration[f"resampling_fn_{kind}_kwargs"] = dict(arguments)
    return {
        "dataset_name": "selfvox",
        "plans_name": "nnsslPlans",
        "original_median_spacing_after_transp": spacing or [1.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "selfvox",
        "configurations": {CONFIGURATION: configuration},
    }
