"""The settings of each verb: one dataclass per verb.

A dataclass here is at once the signature of `selfvox.VERB(...)`, the options of `selfvox VERB`,
their help and defaults, and the keys of `settings.yaml`. There is no second list.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from selfvox.errors import did_you_mean
from selfvox.settings.options import PathOrName, Section

SCANS = Section("How scans become arrays")
TRAINING = Section("Training, in detail")
UNCERTAINTY = Section("Uncertainty: many passes over each scan")
COMPUTER = Section("Computing")

MAPS = ("entropy", "mutual-information", "variance", "percentiles")
INTENSITIES = ("auto", "mri", "ct", "photo")
MIRRORS = ("left-right", "front-back", "up-down")  # axes of a prepared volume, in their order
# the pretext task where none is chosen: examples name none, so that they follow. Masked won eight
# pairs of ten with 3 and 5 labels, and leads published comparisons (docs/how-to/choose-a-task.md)
DEFAULT_TASK = "masked"
FOLDS_FILE = "folds.json"  # in a folder of the runs of all folds
# in studies, where neither steps nor epochs are given
PRETRAIN_STEPS = 1000
FINETUNE_STEPS = 500

Positive = pydantic.Field(gt=0, allow_inf_nan=False)
NotNegative = pydantic.Field(ge=0, allow_inf_nan=False)
AtLeastOne = pydantic.Field(ge=1)
Rate = pydantic.Field(ge=0, lt=1, allow_inf_nan=False)
Edges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=2, max_length=3)
]
# one edge counts for all axes
CropEdges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1, max_length=3)
]
Spacing = Annotated[
    tuple[Annotated[float, Positive], ...], pydantic.Field(min_length=2, max_length=3)
]

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
Network = Annotated[
    str | dict[str, Any],
    PathOrName,
    "encoder: plain or residual (nnU-Net's), monai:NAME, timm:NAME, or a run, to use the same "
    "architecture; settings as --network.SETTING, such as --network.channels 16,32,64,128",
]
Task = Annotated[
    str | dict[str, Any],
    "pretext task, with its options as --task.OPTION; or several tasks, such as rotation+simclr, "
    "with their options as --task.NAME.OPTION",
]
Slices = Annotated[
    Literal["axial", "coronal", "sagittal"] | None,
    "train in 2D on these slices of the volumes; default: train on the volumes",
]
_REGIONS = "sets of classes, also scored; they may overlap, such as 'WT=1,2,4;TC=1,4;ET=4'"
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


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """How scans become arrays; shared by every verb that may prepare scans."""

    source: Source = "auto"
    size: Annotated[
        Edges | None, "resize every scan to this many voxels per axis, such as 128,128,128", SCANS
    ] = None
    spacing: Annotated[
        Spacing | None, "resample every scan to this spacing in mm, such as 1,1,1", SCANS
    ] = None
    intensity: Annotated[
        str,
        "normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all channels, or "
        "one per channel, separated by commas",
        SCANS,
    ] = "auto"
    workers: Annotated[int, "processes that prepare scans; 0: one per core", SCANS, NotNegative] = 0
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler; its workers prepare the scans", SCANS
    ] = None

    def __post_init__(self) -> None:
        _one_of(self, "size", "spacing")
        for kind in self.intensity.split(","):
            _check_choice("intensity", kind.strip(), INTENSITIES)


@dataclass(frozen=True, kw_only=True)
class Prepare(PreparationSettings):
    """Prepare scans: orient, crop to the body, resample, normalise; one array per scan.

    Returns:
        The store's folder.

    Example:
        selfvox prepare scans/ --out store/
    """

    scans: Annotated[Path, "folder of scans, dataset.json, table.csv or a single scan"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the store: a folder, created or updated"]
    test: Annotated[int, "number of subjects held out for testing", NotNegative] = 0
    validation: Annotated[int, "number of subjects held out for validation", NotNegative] = 0
    regions: Annotated[str | None, _REGIONS + "; default: those of the data set"] = None
    seed: Seed = 0


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
    batch: Annotated[int, "images per step and device", AtLeastOne] = 8
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
    devices: Annotated[int, "number of devices (processes) to train on", COMPUTER, AtLeastOne] = 1
    compile: Annotated[
        bool, "compile the encoder by torch.compile; worth it on long runs", COMPUTER
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "steps", "epochs", "minutes")


@dataclass(frozen=True, kw_only=True)
class Finetune(PreparationSettings):
    """Fine-tune an encoder with a few labels to segment, or with grades to classify.

    `--encoder none` trains from scratch.

    Returns:
        The run's folder, which `predict` takes.

    Example:
        selfvox finetune labelled/ --encoder runs/pretrained --labels 10 --out runs/seg
    """

    labelled: Annotated[Path, "folder of scans with labels, table with grades, or a store"] = field(
        kw_only=False
    )
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
        float | None, "passes over the labelled training scans, instead of --steps", Positive
    ] = None
    minutes: Minutes = None
    batch: Annotated[int, "crops per step and device", AtLeastOne] = 2
    crop: Annotated[CropEdges | None, "size of the crops in voxels; default: from the scans"] = None
    slices: Slices = None
    unlabelled: Annotated[
        Path | None,
        "more scans like these, without labels, to train on too; --teacher says how",
    ] = None
    teacher: Annotated[
        Literal["auto", "atlas", "network", "both"],
        "who teaches on unlabelled scans: atlas (copies of the labelled scans are moved onto their "
        "anatomies by registration), network (a first network labels them, and a second one learns "
        "what its passes agree on), both, or auto: atlas where registration carries labels from "
        "one labelled scan to another, else network",
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
        Literal["none", "light", "strong"],
        "how much training scans are varied: light (small rotations and zooms, contrast, "
        "brightness, noise) or strong (larger ones, also gamma, blur and low resolution); strong "
        "needs more steps",
        TRAINING,
    ] = "light"
    mirror: Annotated[
        tuple[str, ...] | None,
        f"axes along which half of the training scans are mirrored: none, all, or some of "
        f"{', '.join(MIRRORS)}, separated by commas; right where a mirrored scan could be a real "
        "one, wrong for left-right if classes tell left from right; default: all to classify with "
        "light or strong, else none",
        TRAINING,
    ] = None
    first_conv: Annotated[
        Literal["mean", "tile", "random"] | None,
        "how to adapt the first convolution to scans of other channels than the encoder's: weights "
        "averaged, repeated or random; default: refuse such scans",
        TRAINING,
    ] = None
    freeze: Annotated[
        Literal["warmup", "always", "never"],
        "when the pre-trained encoder is frozen: in the first steps, always, or never",
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
        Literal["dice", "dice+ce"],
        "soft Dice (paper B eq. 2), or the sum of soft Dice and cross-entropy",
        TRAINING,
    ] = "dice"
    class_weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "weight of the Dice of each class in the loss, the background first, such as 1,2,2, or of "
        "each region; default: all the same",
        TRAINING,
    ] = None
    regions: Annotated[str | None, _REGIONS + "; default: those of the data set", TRAINING] = None
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
    learning_rate: Annotated[float, "peak learning rate of AdamW", TRAINING, Positive] = 4e-3
    weight_decay: WeightDecay = 1e-2
    validate_every: Annotated[
        int | None,
        "steps between validations; default: a fifth of the steps, and four times before",
        TRAINING,
        AtLeastOne,
    ] = None
    keep: Annotated[
        Literal["best", "last"],
        "weights to keep: the best by validation, or the last",
        TRAINING,
    ] = "best"
    subset_seed: Annotated[
        int | None,
        "seed that chooses the labelled subjects; default: --seed",
        TRAINING,
        NotNegative,
    ] = None
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "labels", "fraction")
        _one_of(self, "steps", "epochs", "minutes")
        is_dropping = self.encoder_dropout > 0 or self.decoder_dropout > 0
        if not is_dropping and not _is_default(self, "dropout_kind"):
            raise ValueError("dropout_kind: nothing is dropped; give --encoder-dropout 0.3 too")
        for name in ("teacher", "registrations", "rounds"):
            if self.unlabelled is None and not _is_default(self, name):
                raise ValueError(f"{name}: is about unlabelled scans; give --unlabelled too")
        if self.teacher == "network" and not _is_default(self, "registrations"):
            raise ValueError("registrations: the network needs none; choose --teacher both")
        if self.teacher == "atlas" and not _is_default(self, "rounds"):
            raise ValueError("rounds: are those of the network; choose --teacher both")
        _one_of(self, "fold", "folds")
        if self.fold is not None:
            _check_fold(self.fold)
        for name in self.mirror or ():
            _check_choice("mirror", name, ("none", "all", *MIRRORS))


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict segmentations, each on the grid of its scan; or a table of classes.

    Returns:
        The files of the predicted labels, one per scan; for a classifier, the table.

    Example:
        selfvox predict runs/seg new_scans/ --out predictions/
    """

    run: Annotated[Path, "a fine-tuning run, or a folder of the runs of all folds"] = field(
        kw_only=False
    )
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "folder of the predictions; existing ones are kept"]
    source: Source = "auto"
    subset: Annotated[
        Literal["all", "train", "validation", "test"],
        "predict only these subjects of the run's split",
    ] = "all"
    probabilities: Annotated[bool, "also write the probability of every class"] = False
    overlap: Annotated[
        float,
        "overlap of neighbouring windows, as a share of their size",
        pydantic.Field(ge=0, lt=1, allow_inf_nan=False),
    ] = 0.5
    mirror: Annotated[
        bool,
        "also predict the scan mirrored along the axes of `finetune --mirror`, and take the mean: "
        "2, 4 or 8 times as long; several passes take turns instead, at no cost",
    ] = False
    passes: Annotated[
        int,
        "Monte-Carlo dropout: passes over each scan; 1: one prediction without dropout",
        UNCERTAINTY,
        AtLeastOne,
    ] = 1
    encoder_dropout: EncoderDropout = None
    decoder_dropout: DecoderDropout = None
    dropout_kind: DropoutKind = None
    vote: Annotated[
        Literal["majority", "weighted", "borda", "union", "mean"],
        "rule that combines the passes",
        UNCERTAINTY,
    ] = "majority"
    vote_weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "for --vote weighted: weight of a vote for each class, such as 1,2,2",
        UNCERTAINTY,
    ] = None
    union_class: Annotated[
        str | None,
        "for --vote union: the class to predict wherever any pass predicts it",
        UNCERTAINTY,
    ] = None
    maps: Annotated[
        tuple[str, ...],
        f"maps to write and draw, separated by commas: {', '.join(MAPS)}",
        UNCERTAINTY,
    ] = ()
    ensemble: Annotated[
        tuple[Path, ...],
        "more fine-tuning runs to combine with RUN, separated by commas",
        UNCERTAINTY,
    ] = ()
    seed: Seed = 0
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        # the networks of all folds vote too
        is_ensemble = bool(self.ensemble) or (self.run / FOLDS_FILE).exists()
        several = self.passes > 1 or is_ensemble
        if self.passes > 1:
            _check_dropout(self)
        for name in ("encoder_dropout", "decoder_dropout", "dropout_kind"):
            if self.passes == 1 and not _is_default(self, name):
                raise ValueError(
                    f"{name}: a single pass has no dropout; give --passes too, such as --passes 20"
                )
        for name in ("vote", "maps"):
            if not several and not _is_default(self, name):
                raise ValueError(
                    f"{name}: needs several predictions; give --passes 20, or --ensemble RUN"
                )
        for name in self.maps:
            _check_choice("maps", name, MAPS)
        for rule, name in (("weighted", "vote_weights"), ("union", "union_class")):
            if (self.vote == rule) != (getattr(self, name) is not None):
                raise ValueError(f"{name}: belongs to --vote {rule}; give both or neither")


@dataclass(frozen=True, kw_only=True)
class Atlas(PreparationSettings):
    """Carry labels onto scans by registration: the labelled scans most like a scan vote.

    No network is trained. Several labelled scans also show how far they agree.

    Returns:
        The files of the predicted labels, one per scan.

    Example:
        selfvox atlas labelled/ new_scans/ --out predictions/
    """

    labelled: Annotated[Path, "folder of scans with labels, or a store"] = field(kw_only=False)
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "folder of the predictions; existing ones are kept"]
    atlases: Annotated[int, "at most so many labelled scans vote for each scan", AtLeastOne] = 5


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure on labelled scans how far the passes of `predict` can be trusted.

    `predict --passes` then writes the expected Dice of each class, and intervals of its volume.

    Returns:
        The file of the calibration, in the run.

    Example:
        selfvox calibrate runs/seg
    """

    run: Annotated[Path, "a fine-tuning run that segments"] = field(kw_only=False)
    labelled: Annotated[
        Path | None,
        "labelled scans that the run was not trained on, or a store of such; default: its "
        "validation subjects",
    ] = field(default=None, kw_only=False)
    source: Source = "auto"
    passes: Annotated[int, "Monte-Carlo dropout: passes over each scan", pydantic.Field(ge=2)] = 20
    encoder_dropout: EncoderDropout = None
    decoder_dropout: DecoderDropout = None
    dropout_kind: DropoutKind = None
    seed: Seed = 0
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        _check_dropout(self)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against the truth: Dice, distances in mm, volumes; kappa, accuracy, AUC.

    Returns:
        The rows of the table of scores.

    Example:
        selfvox evaluate predictions/ truth/ --out scores.csv
    """

    predictions: Annotated[Path, "folder of predictions"] = field(kw_only=False)
    truth: Annotated[Path, "folder or data set with true labels, or a table with grades"] = field(
        kw_only=False
    )
    out: Annotated[Path | None, "table of the scores to write, .csv"] = None
    regions: Annotated[str | None, _REGIONS + "; default: those of the run or the data set"] = None
    source: Source = "auto"


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Label three tissues in brain scans automatically, to pre-train a supervised baseline.

    Returns:
        The table of the labelled scans.

    Example:
        selfvox tissues scans/ --out labelled/
    """

    scans: Annotated[Path, "folder of skull-stripped scans, such as T1 MRI of brains"] = field(
        kw_only=False
    )
    out: Annotated[Path, "folder of the labels and their table; existing ones are kept"]
    source: Source = "auto"


@dataclass(frozen=True, kw_only=True)
class Download:
    """Download a task of the Medical Segmentation Decathlon, with its labels.

    Returns:
        The folder of the task, which the other commands take.

    Example:
        selfvox download Task07_Pancreas data/
    """

    dataset: Annotated[str, "name of the task, such as Task07_Pancreas"] = field(kw_only=False)
    folder: Annotated[Path, "folder to create the task's folder in"] = field(kw_only=False)


@dataclass(frozen=True, kw_only=True)
class Preview(PreparationSettings):
    """Draw the examples that a pretext task makes from your scans, as a picture.

    Returns:
        The picture.

    Example:
        selfvox preview scans/ --out preview.png
    """

    scans: Annotated[Path, "folder of scans, or a store"] = field(kw_only=False)
    out: Annotated[Path, "the picture to write, .png"] = Path("preview.png")
    task: Task = DEFAULT_TASK
    crop: Annotated[CropEdges | None, "size of the crops in voxels; default: from the scans"] = None
    slices: Slices = None
    count: Annotated[int, "number of scans to show", AtLeastOne] = 3
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a label-efficiency study: methods x labels x seeds, each with a from-scratch baseline.

    Returns:
        The rows of the study's summary.

    Example:
        selfvox study plan.yaml --out study/
    """

    plan: Annotated[
        str, PathOrName, "the plan, a .yaml file, or the name of a plan shipped with selfvox"
    ] = field(kw_only=False)
    out: Annotated[Path, "the study: a folder, created; the same command again continues it"]
    data: Annotated[Path | None, "scans with labels; overrides the data of the plan"] = None
    scale: Annotated[
        float,
        "share of all training steps to run, such as 0.01 for a trial",
        pydantic.Field(gt=0, le=1),
    ] = 1.0
    dry_run: Annotated[
        bool, "prepare the scans, time a few steps, print the expected cost, and stop"
    ] = False
    table: Annotated[bool, "no training; make tables and figures of the finished runs"] = False
    passes: Annotated[
        int | None,
        "no training; predict with the finished runs by this many passes of Monte-Carlo "
        "dropout, for several places, rates and votes",
        pydantic.Field(ge=2),
    ] = None
    shard: Annotated[
        str, "I/N: run every Nth cell from the Ith on, counted from 0; for job arrays", COMPUTER
    ] = "0/1"
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler; its workers run the cells", COMPUTER
    ] = None

    def __post_init__(self) -> None:
        parse_shard(self.shard)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole workflow on synthetic scans, in minutes.

    Pre-train, fine-tune, train a from-scratch baseline, predict and score.

    Returns:
        The folder of the demo.

    Example:
        selfvox demo --out demo
    """

    out: Annotated[Path, "folder of the demo; must be empty or new"] = Path("demo")
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """List versions, devices, tasks, encoders and sources; `info tasks` describes each task.

    Returns:
        The listed facts by name.

    Example:
        selfvox info tasks
    """

    subject: Annotated[
        Literal["all", "tasks"], "all, or tasks: what each task does, its options and its cost"
    ] = field(default="all", kw_only=False)
    json: Annotated[bool, "print JSON"] = False


# in the order of the help
VERBS: dict[str, type] = {
    settings.__name__.lower(): settings
    for settings in (
        Prepare,
        Pretrain,
        Finetune,
        Predict,
        Calibrate,
        Evaluate,
        Study,
        Atlas,
        Tissues,
        Download,
        Preview,
        Demo,
        Info,
    )
}


def _one_of(settings: Any, *names: str) -> None:
    given = [name for name in names if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]}: give one of them, not both")


def _check_dropout(settings: Any) -> None:
    if settings.encoder_dropout == settings.decoder_dropout == 0:
        raise ValueError(
            "passes: all passes would be equal without dropout; give --encoder-dropout 0.3"
        )


def _is_default(settings: Any, name: str) -> bool:
    """Whether a field has its default value."""
    default = next(item.default for item in dataclasses.fields(settings) if item.name == name)
    return bool(getattr(settings, name) == default)


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option}: '{value}' is not a choice{did_you_mean(value, choices)}")


def _check_fold(text: str) -> None:
    if not re.fullmatch(r"[1-9]\d{0,3}/[1-9]\d{0,3}", text):
        raise ValueError(f"fold: invalid fold '{text}'; use K/N, such as 2/5")
    number, count = map(int, text.split("/"))
    if number > count:
        raise ValueError(f"fold: {text} is beyond the last fold; use 1/{count} to {count}/{count}")


def parse_shard(text: str) -> tuple[int, int]:
    """`1/4` -> (1, 4): run every 4th cell from cell 1 on.

    Raises:
        ValueError: it is not I/N with I below N.
    """
    if re.fullmatch(r"\d{1,9}/\d{1,9}", text):
        number, count = map(int, text.split("/"))
        if number < count:
            return number, count
    raise ValueError(f"shard: invalid shard '{text}'; use I/N with I from 0 to N-1, such as 0/4")
