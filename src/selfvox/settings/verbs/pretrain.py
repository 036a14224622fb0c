"""The settings of the verb `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from selfvox.settings.bounds import AtLeastOne, CropEdges, NotNegative, Positive
from selfvox.settings.verbs._checks import one_of
from selfvox.settings.verbs._preparation import PreparationSettings
from selfvox.settings.verbs._shared import (
    COMPUTER,
    TRAINING,
    Device,
    Devices,
    LogTo,
    Minutes,
    Network,
    Precision,
    Resume,
    Seed,
    Slices,
    WeightDecay,
)

# the pretext task where none is chosen: examples name none, so that they follow. Masked won eight
# pairs of ten with 3 and 5 labels, and leads published comparisons (docs/how-to/choose-a-task.md)
DEFAULT_TASK = "masked"
# in studies, where neither steps nor epochs are given
PRETRAIN_STEPS = 1000

Task = Annotated[
    str | dict[str, Any],
    "pretext task, with its options as --task.OPTION; or several tasks, such as rotation+simclr, "
    "with their options as --task.NAME.OPTION",
]


@dataclass(frozen=True, kw_only=True)
class Pretrain(PreparationSettings):
    """Pre-train an encoder on scans without labels, by a self-supervised task.

    Returns:
        The run's folder, which `finetune` takes as its encoder.

    Example:
        selfvox pretrain scans/ --out runs/pretrained
    """

    scans: Annotated[Path, "folder of scans, or a store made by `selfvox prepare`"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the run: a folder, created"]
    task: Task = DEFAULT_TASK
    weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "for several tasks: weight of each loss, such as 1,0.5; default: 1 each",
    ] = None
    steps: Annotated[
        int | None,
        "optimiser steps; default, unless --epochs is given: by the voxels of the scans, fewer on "
        "a CPU",
        AtLeastOne,
    ] = None
    epochs: Annotated[float | None, "passes over the scans, instead of --steps", Positive] = None
    minutes: Minutes = None
    batch: Annotated[int, "images per batch and device", AtLeastOne] = 8
    crop: Annotated[
        CropEdges | None, "size of the crops in voxels, such as 64,64,64; default: from the scans"
    ] = None
    slices: Slices = None
    probe: Annotated[
        Path | None,
        "labelled scans, or a store of such, for a linear and a nearest-neighbour probe of the "
        "frozen encoder, run five times; never trained on",
    ] = None
    seed: Seed = 0
    resume: Resume = False
    network: Network = "plain"
    learning_rate: Annotated[float, "peak learning rate of AdamW", TRAINING, Positive] = 1e-3
    weight_decay: WeightDecay = 1e-2
    accumulate: Annotated[
        int, "batches per optimiser step: their gradients are accumulated", TRAINING, AtLeastOne
    ] = 1
    save_every: Annotated[int, "steps between checkpoints", TRAINING, AtLeastOne] = 100
    precision: Precision = "auto"
    device: Device = "auto"
    devices: Devices = None
    log_to: LogTo = None
    compile: Annotated[
        bool, "compile the encoder by torch.compile; worth it on long runs", COMPUTER
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "steps", "epochs", "minutes")
