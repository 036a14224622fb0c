"""What each verb may be told: one dataclass per verb.

A dataclass here is, at once, the signature of `selfvox.VERB(...)`, the options of `selfvox VERB`, their help and
defaults, and the keys of `settings.yaml`. There is no second list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from selfvox.errors import did_you_mean
from selfvox.settings.options import Section

SCANS = Section("How scans become arrays")
TRAINING = Section("Training, in detail")
UNCERTAINTY = Section("Uncertainty: many passes over each scan")
COMPUTER = Section("Computing")

MAPS = ("entropy", "mutual-information", "variance", "percentiles")
INTENSITIES = ("auto", "mri", "ct", "photo")
PRETRAIN_STEPS, FINETUNE_STEPS = 1000, 500  # where neither steps nor epochs are given

Positive = pydantic.Field(gt=0, allow_inf_nan=False)
NotNegative = pydantic.Field(ge=0, allow_inf_nan=False)
AtLeastOne = pydantic.Field(ge=1)
Rate = pydantic.Field(ge=0, lt=1, allow_inf_nan=False)
Edges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=2, max_length=3)
]
CropEdges = Annotated[
    tuple[Annotated[int, AtLeastOne], ...], pydantic.Field(min_length=1, max_length=3)
]
Spacing = Annotated[
    tuple[Annotated[float, Positive], ...], pydantic.Field(min_length=2, max_length=3)
]

Source = Annotated[
    str,
    "how the scans are laid out: auto, folder, bids (or bids:T1w), brats, decathlon, dicom (or dicom:allow-gap), "
    "nnunet or table",
    SCANS,
]
Seed = Annotated[int, "seed of everything random", pydantic.Field(ge=0, lt=2**63)]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    "arithmetic: auto takes bf16 where the processor has it, else fp32",
    COMPUTER,
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], "where to compute", COMPUTER]
Network = Annotated[
    str | dict[str, Any],
    "encoder: plain or residual (nnU-Net's), monai:NAME, timm:NAME, or a run, for the same network as its encoder's; "
    "settings as --network.SETTING, such as --network.channels 16,32,64,128",
]
Task = Annotated[
    str | dict[str, Any],
    "the pretext task, its options as --task.OPTION; or several at once, such as rotation+simclr, their options as "
    "--task.NAME.OPTION",
]
Slices = Annotated[
    Literal["axial", "coronal", "sagittal"] | None,
    "train in 2D, on such slices of the volumes; default: on the volumes",
]
_REGIONS = "sets of classes to score too, which may overlap, such as 'WT=1,2,4;TC=1,4;ET=4'"
WeightDecay = Annotated[float, "decoupled weight decay of AdamW", TRAINING, NotNegative]
Resume = Annotated[bool, "go on with the run that lies in OUT"]


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """How scans become arrays; shared by every verb that may have to prepare them."""

    source: Source = "auto"
    size: Annotated[
        Edges | None, "resize every scan to this many voxels per axis, such as 128,128,128", SCANS
    ] = None
    spacing: Annotated[
        Spacing | None, "resample every scan to this spacing in mm, such as 1,1,1", SCANS
    ] = None
    intensity: Annotated[
        str,
        "auto, or mri (z-score), ct (fixed window), photo; one for all channels or one for each, by commas",
        SCANS,
    ] = "auto"
    workers: Annotated[
        int, "processes that prepare scans; 0 takes one per core", SCANS, NotNegative
    ] = 0
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler that prepares the scans instead", SCANS
    ] = None

    def __post_init__(self) -> None:
        _one_of(self, "size", "spacing")
        for kind in self.intensity.split(","):
            if kind.strip() not in INTENSITIES:
                raise ValueError(
                    f"intensity: '{kind.strip()}' is not a choice{did_you_mean(kind, INTENSITIES)}"
                )


@dataclass(frozen=True, kw_only=True)
class Prepare(PreparationSettings):
    """Prepare scans: oriented, cropped to the body, resampled, normalised; one array per scan, and a manifest.

    Example:
        selfvox prepare scans/ --out store/
    """

    scans: Annotated[Path, "folder of scans, dataset.json, table.csv or a single scan"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the store: a folder that is made, or brought up to date"]
    test: Annotated[int, "subjects to keep out of all training, for testing", NotNegative] = 0
    validation: Annotated[int, "subjects to keep for validation", NotNegative] = 0
    regions: Annotated[str | None, _REGIONS + "; default: those that the data set declares"] = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Pretrain(PreparationSettings):
    """Pre-train an encoder on scans without labels, by a task that images answer about themselves.

    Example:
        selfvox pretrain scans/ --task simclr --out runs/simclr
    """

    scans: Annotated[Path, "folder of scans, or a store made by `selfvox prepare`"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the run: a folder that is made"]
    task: Task = "simclr"
    weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "of several tasks: what the loss of each counts, such as 1,0.5; default: 1 each",
    ] = None
    steps: Annotated[
        int | None,
        f"optimiser steps; default: {PRETRAIN_STEPS}, or what --epochs gives",
        AtLeastOne,
    ] = None
    epochs: Annotated[float | None, "passes over the scans, instead of --steps", Positive] = None
    batch: Annotated[int, "images per step and device", AtLeastOne] = 8
    crop: Annotated[
        CropEdges | None, "edges of the crops in voxels, such as 64,64,64; default: by the scans"
    ] = None
    slices: Slices = None
    probe: Annotated[
        Path | None,
        "scans with labels, or a store of such: tells every fifth of the run what they can be told by; trains nothing",
    ] = None
    seed: Seed = 0
    resume: Resume = False
    network: Network = "plain"
    learning_rate: Annotated[float, "peak learning rate of AdamW", TRAINING, Positive] = 1e-3
    weight_decay: WeightDecay = 1e-2
    accumulate: Annotated[int, "batches whose gradients make one step", TRAINING, AtLeastOne] = 1
    save_every: Annotated[int, "steps between checkpoints", TRAINING, AtLeastOne] = 100
    precision: Precision = "auto"
    device: Device = "auto"
    devices: Annotated[int, "how many devices (processes) train together", COMPUTER, AtLeastOne] = 1
    compile: Annotated[bool, "torch.compile the encoder; pays on long runs", COMPUTER] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "steps", "epochs")


@dataclass(frozen=True, kw_only=True)
class Finetune(PreparationSettings):
    """Fine-tune an encoder with a few labels to segment, or with grades to classify; `--encoder none`: from scratch.

    Example:
        selfvox finetune labelled/ --encoder runs/simclr --labels 10 --out runs/seg
    """

    labelled: Annotated[Path, "folder of scans with labels, table with grades, or a store"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the run: a folder that is made"]
    encoder: Annotated[
        str, "a pre-training run, its encoder/ folder, a fine-tuning run, or none: from scratch"
    ]
    labels: Annotated[
        int | None, "how many labelled subjects to train on; default: all", AtLeastOne
    ] = None
    fraction: Annotated[
        float | None,
        "share of the labelled training subjects to train on, instead of --labels",
        pydantic.Field(gt=0, le=1, allow_inf_nan=False),
    ] = None
    fold: Annotated[
        str | None, "cross-validation: which of how many folds is the test set, such as 2/5"
    ] = None
    steps: Annotated[
        int | None,
        f"optimiser steps; default: {FINETUNE_STEPS}, or what --epochs gives",
        AtLeastOne,
    ] = None
    epochs: Annotated[
        float | None, "passes over the labelled training scans, instead of --steps", Positive
    ] = None
    batch: Annotated[int, "crops per step and device", AtLeastOne] = 2
    crop: Annotated[CropEdges | None, "edges of the crops in voxels; default: by the scans"] = None
    slices: Slices = None
    seed: Seed = 0
    resume: Resume = False
    network: Network = "plain"
    first_conv: Annotated[
        Literal["mean", "tile", "random"] | None,
        "how an encoder takes scans of other channels than its own: its first weights averaged, repeated or drawn "
        "anew; default: refuse such scans",
        TRAINING,
    ] = None
    freeze: Annotated[
        Literal["warmup", "always", "never"],
        "when the pre-trained encoder stands still: the first steps, always, never",
        TRAINING,
    ] = "warmup"
    warmup: Annotated[
        float,
        "share of the steps the encoder stands still for; the papers: 25 of 400 epochs",
        TRAINING,
        pydantic.Field(ge=0, le=1, allow_inf_nan=False),
    ] = 0.0625
    head: Annotated[
        Literal["full", "linear"],
        "what is put upon the encoder: a decoder (two layers where scans are classified), or one linear layer, which "
        "with --freeze always is a linear probe",
        TRAINING,
    ] = "full"
    loss: Annotated[
        Literal["dice", "dice+ce"],
        "soft Dice (paper B eq. 2), or its sum with cross-entropy",
        TRAINING,
    ] = "dice"
    regions: Annotated[str | None, _REGIONS + "; default: those of the data set", TRAINING] = None
    train_on: Annotated[
        Literal["classes", "regions"],
        "what the network tells apart: each voxel's class, or the regions, each by itself",
        TRAINING,
    ] = "classes"
    ordinal: Annotated[
        bool, "classes have an order: a near miss is better than a far one", TRAINING
    ] = True
    balance: Annotated[
        bool, "draw every class equally often, where whole scans are classified", TRAINING
    ] = False
    learning_rate: Annotated[float, "peak learning rate of AdamW", TRAINING, Positive] = 4e-3
    weight_decay: WeightDecay = 1e-2
    validate_every: Annotated[
        int | None, "steps between validations; default: a fifth of the steps", TRAINING, AtLeastOne
    ] = None
    keep: Annotated[
        Literal["best", "last"],
        "which weights the run ends with: best by validation, or the last",
        TRAINING,
    ] = "best"
    subset_seed: Annotated[
        int | None,
        "seed of the choice of labelled subjects; default: --seed",
        TRAINING,
        NotNegative,
    ] = None
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(self, "labels", "fraction")
        _one_of(self, "steps", "epochs")
        if self.fold is not None and not re.fullmatch(r"[1-9]\d{0,3}/[1-9]\d{0,3}", self.fold):
            raise ValueError(
                f"fold: '{self.fold}' is no fold; write which of how many, such as 2/5"
            )
        if self.fold is not None and int(self.fold.split("/")[0]) > int(self.fold.split("/")[1]):
            raise ValueError(f"fold: {self.fold} counts beyond the last; the first is 1")


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict segmentations, each on the grid of the scan it was made from; or a table of classes.

    Example:
        selfvox predict runs/seg new_scans/ --out predictions/
    """

    run: Annotated[Path, "a fine-tuning run"] = field(kw_only=False)
    scans: Annotated[Path, "a folder of scans, one scan, or a .txt file with one scan a line"] = (
        field(kw_only=False)
    )
    out: Annotated[Path, "folder of the predictions; those already there are kept"]
    source: Source = "auto"
    subset: Annotated[
        Literal["all", "train", "validation", "test"], "only these subjects, as the run split them"
    ] = "all"
    probabilities: Annotated[bool, "write the probability of every class too"] = False
    overlap: Annotated[
        float,
        "share by which neighbouring windows overlap",
        pydantic.Field(ge=0, lt=1, allow_inf_nan=False),
    ] = 0.5
    passes: Annotated[
        int,
        "Monte-Carlo dropout: passes over each scan; 1: a plain prediction, without dropout",
        UNCERTAINTY,
        AtLeastOne,
    ] = 1
    encoder_dropout: Annotated[
        float, "share of the units dropped behind each activation", UNCERTAINTY, Rate
    ] = 0.3
    decoder_dropout: Annotated[float, "the same in the decoder", UNCERTAINTY, Rate] = 0.0
    dropout_kind: Annotated[
        Literal["element", "channel"], "drop single units or whole channels", UNCERTAINTY
    ] = "element"
    vote: Annotated[
        Literal["majority", "weighted", "borda", "union", "mean"],
        "how the passes decide together",
        UNCERTAINTY,
    ] = "majority"
    vote_weights: Annotated[
        tuple[Annotated[float, NotNegative], ...] | None,
        "of --vote weighted: what a vote for each class counts, such as 1,2,2",
        UNCERTAINTY,
    ] = None
    union_class: Annotated[
        str | None,
        "of --vote union: the class that holds wherever any pass votes for it",
        UNCERTAINTY,
    ] = None
    maps: Annotated[
        tuple[str, ...],
        "maps to write and draw, by commas: entropy, mutual-information, variance, percentiles",
        UNCERTAINTY,
    ] = ()
    ensemble: Annotated[
        tuple[Path, ...], "further fine-tuning runs that vote too, by commas", UNCERTAINTY
    ] = ()
    seed: Seed = 0
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.passes > 1 and self.encoder_dropout == self.decoder_dropout == 0:
            raise ValueError(
                "passes: without dropout they would all be the same; give --encoder-dropout 0.3"
            )
        for name in ("encoder_dropout", "decoder_dropout", "dropout_kind"):
            if self.passes == 1 and getattr(self, name) != getattr(Predict, name):  # the default
                raise ValueError(
                    f"{name}: goes with --passes, such as --passes 20; without, nothing is dropped"
                )
        for name in ("vote", "maps"):
            if (
                self.passes == 1
                and not self.ensemble
                and getattr(self, name) not in ("majority", ())
            ):
                raise ValueError(
                    f"{name}: one prediction is not enough; give --passes 20, or --ensemble RUN"
                )
        for name in self.maps:
            if name not in MAPS:
                raise ValueError(f"maps: '{name}' is not a choice{did_you_mean(name, MAPS)}")
        for rule, name in (("weighted", "vote_weights"), ("union", "union_class")):
            if (self.vote == rule) != (getattr(self, name) is not None):
                raise ValueError(
                    f"{name}: goes with --vote {rule}, and that with it; give both or neither"
                )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against the truth: Dice, distances in mm and volumes; of classes kappa, accuracy and AUC.

    Example:
        selfvox evaluate predictions/ truth/ --out scores.csv
    """

    predictions: Annotated[Path, "folder of predictions"] = field(kw_only=False)
    truth: Annotated[Path, "folder or data set of true labels, or a table with grades"] = field(
        kw_only=False
    )
    out: Annotated[Path | None, "table of the scores, .csv"] = None
    regions: Annotated[str | None, _REGIONS + "; default: those of the run or the data set"] = None
    source: Source = "auto"


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Label three tissues in every brain scan, automatically: what a supervised baseline pre-trains on.

    Example:
        selfvox tissues scans/ --out labelled/
    """

    scans: Annotated[Path, "folder of scans without skull, such as T1 MRI of brains"] = field(
        kw_only=False
    )
    out: Annotated[Path, "folder of the labels and their table; those already there are kept"]
    source: Source = "auto"


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch a task of the Medical Segmentation Decathlon, with its labels.

    Example:
        selfvox download Task07_Pancreas data/
    """

    dataset: Annotated[str, "name of the task, such as Task07_Pancreas"] = field(kw_only=False)
    folder: Annotated[Path, "where the task's folder is made"] = field(kw_only=False)


@dataclass(frozen=True, kw_only=True)
class Preview(PreparationSettings):
    """Draw what the network will be asked, as a picture.

    Example:
        selfvox preview scans/ --task simclr --out preview.png
    """

    scans: Annotated[Path, "folder of scans, or a store"] = field(kw_only=False)
    out: Annotated[Path, "the picture, .png"] = Path("preview.png")
    task: Task = "simclr"
    crop: Annotated[CropEdges | None, "edges of the crops in voxels; default: by the scans"] = None
    slices: Slices = None
    count: Annotated[int, "how many scans to show", AtLeastOne] = 3
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """A label-efficiency study from a plan: methods x labels x seeds, each beside its from-scratch twin.

    Example:
        selfvox study plan.yaml --out study/
    """

    plan: Annotated[str, "the plan, .yaml, or the name of one that comes with selfvox"] = field(
        kw_only=False
    )
    out: Annotated[Path, "the study: a folder that is made; the same command again goes on with it"]
    data: Annotated[Path | None, "scans with labels, in place of the plan's data"] = None
    scale: Annotated[
        float,
        "share of all training steps to take, such as 0.01 for a trial",
        pydantic.Field(gt=0, le=1),
    ] = 1.0
    dry_run: Annotated[
        bool, "prepare the scans, time a few steps, print what it would take, and stop"
    ] = False
    table: Annotated[bool, "train nothing; make tables and figures of the runs that are there"] = (
        False
    )
    passes: Annotated[
        int | None,
        "train nothing; ask the runs that are there by so many passes of Monte-Carlo dropout, by place, rate and vote",
        pydantic.Field(ge=2),
    ] = None
    shard: Annotated[
        str, "i/n: only every n-th cell from the i-th on, i from 0; for job arrays", COMPUTER
    ] = "0/1"
    scheduler: Annotated[
        str | None, "address of a dask.distributed scheduler whose workers make the cells", COMPUTER
    ] = None

    def __post_init__(self) -> None:
        number, of = (
            int(part) if part.isdecimal() else -1 for part in (*self.shard.split("/"), "")[:2]
        )
        if not 0 <= number < of:
            raise ValueError(f"shard: '{self.shard}' is no i/n with i from 0 to n-1, such as 0/4")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole way on synthetic scans, in minutes: pre-train, fine-tune beside the from-scratch twin, predict, score.

    Example:
        selfvox demo --out demo
    """

    out: Annotated[Path, "folder of the demo; emptied by you, not by us"] = Path("demo")
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Versions, devices, tasks, encoders and sources; `info tasks`: each task, its options and its cost.

    Example:
        selfvox info tasks
    """

    subject: Annotated[
        Literal["all", "tasks"], "all, or tasks for what each asks, takes and costs"
    ] = field(default="all", kw_only=False)
    json: Annotated[bool, "for machines"] = False


def _one_of(settings: Any, first: str, second: str) -> None:
    if getattr(settings, first) is not None and getattr(settings, second) is not None:
        raise ValueError(f"{first} and {second}: give one of them, not both")
