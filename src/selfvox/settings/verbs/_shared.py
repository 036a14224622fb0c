"""The options that several verbs share, and the headings under which help lists them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from selfvox.settings.bounds import AtLeastOne, NotNegative, Positive, Rate
from selfvox.settings.options import PathOrName, Section

SCANS = Section("How scans become arrays")
TRAINING = Section("Training, in detail")
UNCERTAINTY = Section("Uncertainty: many passes over each scan")
COMPUTER = Section("Computing")

Source = Annotated[
    str,
    "layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom "
    "(or dicom:allow-gap), folder, nnunet or table",
    SCANS,
]
# 63 bits, of which the generators of torch are made
Seed = Annotated[int, "seed of all random numbers", pydantic.Field(ge=0, lt=2**63)]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    "arithmetic: auto uses bf16 where the processor supports it, else fp32",
    COMPUTER,
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], "device to compute on", COMPUTER]
Devices = Annotated[
    int | None,
    "devices (processes) of each machine to train on; default: as many as torchrun or SLURM "
    "started on it, else 1",
    COMPUTER,
    AtLeastOne,
]
LogTo = Annotated[
    Literal["wandb", "mlflow"] | None,
    "send the metrics to Weights & Biases (offline, unless WANDB_MODE says online) or MLflow too; "
    "never scans, their names or paths",
    COMPUTER,
]
Network = Annotated[
    str | dict[str, Any],
    PathOrName,
    "encoder: plain or residual (nnU-Net's), resenc (its presets M and L), monai:NAME or "
    "timm:NAME; or a run or nnU-Net's plans (nnUNetPlans.json, nnUNetPlans.json:2d), to use the "
    "same architecture; "
    "settings as --network.SETTING, such as --network.channels 16,32,64,128",
]
Slices = Annotated[
    Literal["axial", "coronal", "sagittal"] | None,
    "train in 2D on these slices of the volumes; default: train on the volumes",
]
REGIONS = "sets of classes, also scored; they may overlap, such as 'WT=1,2,4;TC=1,4;ET=4'"
WeightDecay = Annotated[float, "decoupled weight decay of AdamW", TRAINING, NotNegative]
EncoderDropout = Annotated[
    float | None,
    "dropout rate after each activation of the encoder; default: that of the training, or 0.3 if "
    "there was no dropout in it",
    UNCERTAINTY,
    Rate,
]
DecoderDropout = Annotated[
    float | None, "the same for the decoder; default: that of the training", UNCERTAINTY, Rate
]
DropoutKind = Annotated[
    Literal["element", "channel"] | None,
    "drop single units, or whole channels; default: as in the training, or element",
    UNCERTAINTY,
]
Minutes = Annotated[
    float | None,
    "train for about so many minutes, instead of --steps: a few steps are timed, and the number "
    "that fits is recorded in the run",
    Positive,
]
Resume = Annotated[bool, "continue the run in OUT"]
