"""The verb `adopt`: weights from elsewhere become an encoder that `finetune` takes."""

from __future__ import annotations

import collections
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.errors import UsageError, WeightsError
from selfvox.models.build import build_encoder, plan_encoder, plans_of
from selfvox.models.encoder import Encoder
from selfvox.models.nnunet_plans import kernel_order
from selfvox.neighbours.foreign_file import ForeignFile, read_foreign
from selfvox.neighbours.layouts import LAYOUTS, ForeignEncoder, Layout, find_encoder
from selfvox.runs.atomic_files import sha256
from selfvox.runs.card import EncoderCard
from selfvox.runs.progress import echo
from selfvox.runs.weights import load_strictly, save_part, state_tensors
from selfvox.settings.verbs import Adopt
from selfvox.training.follow_plans import recipe_of_plans
from selfvox.training.pretrained import describe_source

# the convolutions that see the image, of the networks whose names are known
FIRST_LAYERS = (
    "net.stem.convs.0.conv.weight",
    "net.stages.0.0.convs.0.conv.weight",
    "net.conv1.weight",
    "net.patch_embed.proj.weight",
)


def adopt(settings: Adopt) -> Path:
    """Import weights of another program as an encoder; all of the encoder, or nothing.

    Args:
        settings: of the verb.

    Returns:
        The folder of the encoder, which `finetune` takes.

    Raises:
        SelfvoxError: a file that is unsafe or damaged, or has not all weights of the encoder.
    """
    if settings.out.exists() and any(settings.out.iterdir()):
        raise UsageError(f"{settings.out}: exists and is not empty; name another --out")
    layout = LAYOUTS[settings.layout]
    foreign = read_foreign(settings.file)
    part = find_encoder(settings.layout, foreign, settings.network)
    channels = _count_channels(part, foreign)
    crop: tuple[int, ...] = (layout.crop,) * 3
    spacing_mm: tuple[float, ...] = (layout.spacing_mm or 1.0,) * 3
    recipe: Recipe | None = _recipe(layout, channels)
    plans = plans_of(settings.network)
    if plans is not None and plans.spacing_mm is not None:
        crop = plans.patch
        spacing_mm = plans.spacing_mm
        recipe = recipe_of_plans(plans)
    if recipe is None or len(recipe.channel_names) != channels:
        raise UsageError(
            f"network: {settings.network} is of other channels than the {channels} of the file, or "
            "has intensities that selfvox does not have; name the plans of this file"
        )
    spec = plan_encoder(part.network, crop, spacing_mm)
    encoder = build_encoder(spec, 3, channels)
    report = _load(encoder, part, foreign)
    card = EncoderCard(
        network=spec,
        spatial_dims=3,
        in_channels=channels,
        crop=crop,
        slices=None,
        spacing_mm=spacing_mm,
        recipe=recipe.to_dict(),
        task={"name": f"{layout.title} (weights from elsewhere)"},
        weights=None,
        seen={"subjects": [], "image_hashes": []},
        steps=0,
        seed=0,
        source={
            "title": layout.title,
            "licence": layout.licence,
            "citation": layout.citation,
            "scans": layout.scans,
            "file_sha256": sha256(settings.file),
        },
    )
    save_part(settings.out / "encoder", "encoder", encoder, card.to_json())
    echo(report)
    for reason, count in collections.Counter(part.left_out.values()).items():
        echo(f"left out: {count} tensors ({reason})")
    assert card.source is not None
    echo(describe_source(card.source))
    echo("which subjects it was trained on is not known: test scans may be among them")
    out = shlex.quote(str(settings.out))
    echo(f"next: selfvox finetune LABELLED/ --encoder {out} --out runs/seg")
    return settings.out


def _count_channels(part: ForeignEncoder, foreign: ForeignFile) -> int:
    """Channels of the images: those of the convolution that sees them."""
    inputs = {
        name: int(tensor.shape[1]) for name, tensor in part.tensors.items() if tensor.ndim == 5
    }
    if not inputs:
        raise WeightsError(f"{foreign.file}: has no convolution of volumes; is it another layout?")
    for name in FIRST_LAYERS:
        if name in inputs:
            return inputs[name]
    # of a network of one's own: images have fewer channels than feature maps
    return min(inputs.values())


def _load(encoder: Encoder, part: ForeignEncoder, foreign: ForeignFile) -> str:
    """Load the weights into the encoder, kernels turned to our axes; a report in words."""
    order = None if part.axes is None else _inverse(kernel_order(part.axes))
    turned = {
        name: tensor.permute(order) if order is not None and tensor.ndim == 5 else tensor
        for name, tensor in part.tensors.items()
    }
    filled = _with_counters(turned, state_tensors(encoder))
    loaded = load_strictly(encoder, filled, str(foreign.file))
    axes = "" if part.axes is None else "; kernels are turned to x, y, z"
    return f"encoder: {loaded}, all of it{axes}"


def _with_counters(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with what batch norms count, which old files do not have and nothing uses."""
    counters = {
        name: tensor
        for name, tensor in state.items()
        if name.endswith(".num_batches_tracked") and name not in tensors
    }
    return {**tensors, **counters}


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def _recipe(layout: Layout, channels: int) -> Recipe:
    """How scans are prepared for these weights."""
    intensity: dict[str, Any] = {"kind": layout.kind}
    if layout.window is not None:
        lower, upper = layout.window
        # so that the window becomes 0 to 1
        intensity |= {"lower": lower, "upper": upper, "mean": lower, "std": upper - lower}
    names = [layout.kind.upper()] if channels == 1 else [f"channel {i}" for i in range(channels)]
    spacing_mm = None if layout.spacing_mm is None else (layout.spacing_mm,) * 3
    return Recipe(
        spatial_dims=3,
        channel_names=tuple(names),
        intensity=(Intensity(**intensity),) * channels,
        spacing_mm=spacing_mm,
    )
