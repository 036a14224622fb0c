"""Hugging Face: a folder with weights, their card and a page about them, without any subjects."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from selfvox.runs.atomic_files import check_new_folder, sha256, write_text
from selfvox.runs.card import (
    Card,
    ClassifierCard,
    EncoderCard,
    NetworkCard,
    RegressorCard,
    SegmenterCard,
)
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import read_encoder, read_network, save_tensors

WEIGHTS = "model.safetensors"
CARD = "config.json"
TAGS = {
    EncoderCard: "image-feature-extraction",
    SegmenterCard: "image-segmentation",
    ClassifierCard: "image-classification",
    RegressorCard: "other",
}
PAGE = """\
---
library_name: selfvox
pipeline_tag: {tag}
tags:
- medical-imaging
---

# {title}

{what}

- Network: `{network}`, {dims}D, {channels} channel(s), {millions:.2f} M weights
- Channels: {names}
- Trained on crops of {crop} voxels{spacing}

Names of subjects and checksums of scans are left out of this folder.
The licence is yours to choose: add `license:` to the lines at the top.

To use it with selfvox, rename `model.safetensors` to `weights.safetensors` and `config.json` to
`{part}.json` in a folder called `{part}`; then `selfvox {verb}` takes the folder above.
"""


def write_huggingface(run: Path, out: Path) -> Path:
    """Write a folder as Hugging Face shows models; nothing is uploaded.

    Args:
        run: a pre-training or fine-tuning run.
        out: the folder, created.

    Raises:
        UsageError: the folder is not empty.
        WeightsError: the run has no intact weights.
    """
    check_new_folder(out)
    card: Card
    if (run / "network").is_dir():
        tensors, card = read_network(run)
    else:
        tensors, card = read_encoder(run)
    card = card.without_people()
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_tensors(temporary / WEIGHTS, tensors)
        entries = {**card.to_json(), "sha256": sha256(temporary / WEIGHTS)}
        write_checked(temporary / CARD, entries)
        write_text(temporary / "README.md", _page(card, tensors))
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _page(card: Card, tensors: dict[str, Tensor]) -> str:
    part = "network" if isinstance(card, NetworkCard) else "encoder"
    values = sum(tensor.numel() for tensor in tensors.values())
    spacing = card.recipe.get("spacing_mm")
    what = "An encoder, pre-trained without labels."
    if isinstance(card, EncoderCard):
        what = f"An encoder, pre-trained by {card.task['name']} for {card.steps} steps."
    if isinstance(card, SegmenterCard):
        what = f"A network that segments {', '.join(card.classes.values())}."
    if isinstance(card, ClassifierCard):
        what = f"A network that classifies scans as {', '.join(card.classes)}."
    if isinstance(card, RegressorCard):
        what = "A network that predicts a number of whole scans."
    return PAGE.format(
        tag=TAGS[type(card)],
        title=f"selfvox {part}",
        what=what,
        network=card.network["name"],
        dims=card.spatial_dims,
        channels=card.in_channels,
        millions=values / 1e6,
        names=", ".join(card.recipe.get("channel_names", ())),
        crop=" x ".join(map(str, card.crop)),
        spacing="" if spacing is None else f" at {' x '.join(f'{mm:.3g}' for mm in spacing)} mm",
        part=part,
        verb="predict" if part == "network" else "finetune --encoder",
    )
