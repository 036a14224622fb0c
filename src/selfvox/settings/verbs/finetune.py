"""The settings of the verb `finetune`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from selfvox.settings.bounds import AtLeastOne, CropEdges, NotNegative, Positive, Rate
from selfvox.settings.options import PathOrName
from selfvox.settings.verbs._checks import check_choice, is_default, one_of
from selfvox.settings.verbs._preparation import PreparationSettings
from selfvox.settings.verbs._shared import (
    REGIONS,
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

MIRRORS = ("left-right", "front-back", "up-down")  # axes of a prepared volume, in their order
# in studies, where neither steps nor epochs are given
FINETUNE_STEPS = 1500
# by the value of `freeze`: options that have no effect with it, and why
_IDLE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "always": (("warmup", "schedule", "encoder_lr"), "the encoder is never trained"),
    "lora": (
        ("warmup", "schedule", "encoder_lr"),
        "low-rank changes are trained from the first step, at --learning-rate",
    ),
    "never": (("warmup", "schedule"), "the encoder is trained from the first step"),
}


@dataclass(frozen=True, kw_only=True)
class Finetune(PreparationSettings):
    """Fine-tune an encoder to segment by labels, to classify by grades, or to predict numbers.

    `--encoder none` trains from scratch.

    Returns:
        The run's folder, which `predict` takes.

    Example:
        selfvox finetune labelled/ --encoder runs/pretrained --labels 10 --out runs/seg
    """

    labelled: Annotated[
        Path, "folder of scans with labels, table with grades or targets, or a store"
    ] = field(kw_only=False)
    out: Annotated[Path, "the run: a folder, created"]
    encoder: Annotated[
        str,
        PathOrName,
        "a pre-training run, its encoder/ folder, a fine-tuning run, or none: train from scratch",
    ]
    labels: Annotated[
        int | None, "number of labelled subjects to train on; default: all", AtLeastOne
    ] = None
    fraction: Annotated[
        float | None,
        "share of the labelled training subjects to train on, instead of --labels",
        pydantic.Field(gt=0, le=1, allow_inf_nan=False),
    ] = None
    fold: Annotated[str | None, "cross-validation: K/N tests on fold K of N, such as 2/5"] = None
    folds: Annotated[
        int | None,
        "train so many networks, which predict together: each validates on its own part of the "
        "labelled subjects and trains on the others; the runs are OUT/fold_1, OUT/fold_2, ...",
        pydantic.Field(ge=2),
    ] = None
    steps: Annotated[
        int | None,
        "optimiser steps; default, unless --epochs is given: by the voxels of the labelled scans, "
        "fewer on a CPU",
        AtLeastOne,
    ] = None
    epochs: Annotated[
        float | None,
        "passes over the labelled training scans, instead of --steps; of copies and "
        "pseudo-labels, as if all crops were of labelled scans",
        Positive,
    ] = None
    minutes: Minutes = None
    batch: Annotated[int, "crops per step and device", AtLeastOne] = 2
    crop: Annotated[CropEdges | None, "size of the crops in voxels; default: from the scans"] = None
    slices: Slices = None
    unlabelled: Annotated[
        Path | None,
        "more scans like these, without labels, to train on too; --teacher says how. They can also "
        "do harm: the labelled scans decide who teaches, and those that validate show the gain; "
        "with a single labelled scan nothing does, and --teacher has to be given",
    ] = None
    teacher: Annotated[
        Literal["auto", "atlas", "network", "both"],
        "who teaches on unlabelled scans: atlas (copies of the labelled scans are moved onto their "
        "anatomies by registration), network (a first network labels them, and a second one learns "
        "what its passes agree on), both, or auto: atlas where registration carries labels from "
        "one labelled scan to another, else network; with a single labelled scan nothing shows who "
        "should teach: atlas for anatomy that all people have, network for lesions",
    ] = "auto"
    registrations: Annotated[
        int, "of the atlas: at most so many registrations to unlabelled scans", AtLeastOne
    ] = 24
    rounds: Annotated[
        int,
        "of the network as a teacher: how often it labels the scans and is trained again",
        AtLeastOne,
    ] = 1
    seed: Seed = 0
    resume: Resume = False
    network: Network = "plain"
    augment: Annotated[
        Literal["none", "light", "strong"] | None,
        "how much training scans are varied: light (small rotations and zooms, contrast, "
        "brightness, noise) or strong (larger ones, also gamma, blur and low resolution), which "
        "needs 1000 steps or more; default: strong to segment, else light",
        TRAINING,
    ] = None
    mirror: Annotated[
        tuple[str, ...] | None,
        f"axes along which half of the training scans are mirrored: none, all, or some of "
        f"{', '.join(MIRRORS)}, separated by commas; right where a mirrored scan could be a real "
        "one, wrong for left-right if classes tell left from right; default: none to "
        "segment or with --augment none, else all",
        TRAINING,
    ] = None
    first_conv: Annotated[
        Literal["mean", "tile", "random"] | None,
        "how to adapt the first convolution to scans of other channels than the encoder's: weights "
        "averaged, repeated or random; default: refuse such scans",
        TRAINING,
    ] = None
    freeze: Annotated[
        Literal["warmup", "always", "never", "lora"],
        "when the pre-trained encoder is frozen: in the first steps, always, never, or always but "
        "for low-rank changes of its layers (lora)",
        TRAINING,
    ] = "warmup"
    warmup: Annotated[
        float,
        "share of the steps with a frozen encoder; in the papers 25 of 400 epochs",
        TRAINING,
        pydantic.Field(ge=0, le=1, allow_inf_nan=False),
    ] = 0.0625
    schedule: Annotated[
        Literal["ramp", "sawtooth"],
        "learning rates with a pre-trained encoder: ramp: the encoder's rises at its release; "
        "sawtooth: that of the decoder also falls to 0 before the release, and rises again",
        TRAINING,
    ] = "ramp"
    # after 160 steps the features are still alike (linear CKA .82 to .92, at 1 .28 to .69)
    encoder_lr: Annotated[
        float,
        "peak learning rate of a pre-trained encoder, as a multiple of --learning-rate; from "
        "scratch all layers have the same",
        TRAINING,
        Positive,
    ] = 0.1
    head: Annotated[
        Literal["full", "linear"],
        "layers after the encoder: full (a decoder; two layers for classification) or one linear "
        "layer, which with --freeze always is a linear probe",
        TRAINING,
    ] = "full"
    # 5 labels, 100 steps, two seeds: Dice .48 and .82, dice+ce .14 and .77 (docs/results-log.md)
    loss: Annotated[
        Literal["dice", "log-dice", "dice+ce"],
        "log-dice: minus the logarithm of soft Dice, which keeps small classes alive; dice: minus "
        "soft Dice (paper B eq. 2); dice+ce: minus soft Dice, plus cross-entropy",
        TRAINING,
    ] = "log-dice"
    class_weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "weight of the Dice of each class in the loss, the background first, such as 1,2,2, or of "
        "each region; default: all the same",
        TRAINING,
    ] = None
    regions: Annotated[str | None, REGIONS + "; default: those of the data set", TRAINING] = None
    train_on: Annotated[
        Literal["classes", "regions"],
        "output of the network: one class per voxel, or each region separately",
        TRAINING,
    ] = "classes"
    ordinal: Annotated[
        bool, "classes are ordered, such as grades: a near miss costs less than a far one", TRAINING
    ] = True
    balance: Annotated[bool, "classification: draw every class equally often", TRAINING] = False
    encoder_dropout: Annotated[
        float,
        "dropout rate after each activation of the encoder, in training; `predict --passes` then "
        "uses it too",
        TRAINING,
        Rate,
    ] = 0.0
    decoder_dropout: Annotated[
        float,
        "the same for the decoder, or the layers that classify",
        TRAINING,
        Rate,
    ] = 0.0
    dropout_kind: Annotated[
        Literal["element", "channel"], "drop single units, or whole channels", TRAINING
    ] = "element"
    # 5 labels, 100 steps, two seeds: Dice .48 and .82, by 1e-3 .42 and .62 (docs/results-log.md)
    learning_rate: Annotated[
        float | None,
        "peak learning rate of AdamW; default: 0.004 to segment, else 0.001",
        TRAINING,
        Positive,
    ] = None
    weight_decay: WeightDecay = 1e-2
    validate_every: Annotated[
        int | None,
        "steps between validations; default: a fifth of the steps, and four times before",
        TRAINING,
        AtLeastOne,
    ] = None
    # of few validation scans, the best step is chosen by chance (docs/results-log.md)
    keep: Annotated[
        Literal["last", "best"],
        "weights to keep: the last, or the best by validation",
        TRAINING,
    ] = "last"
    subset_seed: Annotated[
        int | None,
        "seed that chooses the labelled subjects; default: --seed",
        TRAINING,
        NotNegative,
    ] = None
    precision: Precision = "auto"
    device: Device = "auto"
    devices: Devices = None
    log_to: LogTo = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "labels", "fraction")
        one_of(self, "steps", "epochs", "minutes")
        is_dropping = self.encoder_dropout > 0 or self.decoder_dropout > 0
        if not is_dropping and not is_default(self, "dropout_kind"):
            raise ValueError("dropout_kind: nothing is dropped; give --encoder-dropout 0.3 too")
        if self.head == "linear" and self.decoder_dropout > 0:
            raise ValueError(
                "decoder_dropout: a linear head has no activations to drop units after; leave it "
                "out"
            )
        for name in ("teacher", "registrations", "rounds"):
            if self.unlabelled is None and not is_default(self, name):
                raise ValueError(f"{name}: is about unlabelled scans; give --unlabelled too")
        if self.teacher == "network" and not is_default(self, "registrations"):
            raise ValueError("registrations: the network needs none; choose --teacher both")
        if self.teacher == "atlas" and not is_default(self, "rounds"):
            raise ValueError("rounds: are those of the network; choose --teacher both")
        idle, reason = _IDLE.get(self.freeze, ((), ""))
        for name in idle:
            if not is_default(self, name):
                raise ValueError(
                    f"{name}: has no effect with --freeze {self.freeze}, since {reason}; leave it "
                    "out"
                )
        one_of(self, "fold", "folds")
        if self.fold is not None:
            _check_fold(self.fold)
        for name in self.mirror or ():
            check_choice("mirror", name, ("none", "all", *MIRRORS))


def _check_fold(text: str) -> None:
    if not re.fullmatch(r"[1-9]\d{0,3}/[1-9]\d{0,3}", text):
        raise ValueError(f"fold: invalid fold '{text}'; use K/N, such as 2/5")
    number, count = map(int, text.split("/"))
    if number > count:
        raise ValueError(f"fold: {text} is beyond the last fold; use 1/{count} to {count}/{count}")
