# Written by tools/write_stub.py from the settings dataclasses: `make stub`
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from selfvox.notebook import LoadedClassifier, LoadedEncoder, LoadedSegmenter
from selfvox.pretext import PretextTask

AnyPath: TypeAlias = str | os.PathLike[str]
Rows: TypeAlias = list[dict[str, Any]]
OnMetrics: TypeAlias = Callable[[int, dict[str, float]], object]

__version__: str

__all__ = [
    "adopt",
    "atlas",
    "calibrate",
    "convert",
    "correct",
    "demo",
    "doctor",
    "download",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "info",
    "lint",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "predict",
    "prepare",
    "pretrain",
    "preview",
    "report",
    "study",
    "suggest",
    "tissues",
]

def lint(
    scans: AnyPath,
    *,
    out: AnyPath | None = None,
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
) -> Rows:
    """Look for mistakes in a data set, without training: files, grids, values, labels.

    The exit code is 3 if a finding is an error. Nothing is written without `out`.

    Args:
        scans: folder of scans, dataset.json, table.csv or a single scan.
        out: folder for tables and for sheets of pictures of all scans.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.

    Returns:
        The findings, the worst first.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.lint("scans/", out="lint/")
    """

def prepare(
    scans: AnyPath,
    *,
    out: AnyPath,
    test: int = 0,
    validation: int = 0,
    regions: str | None = None,
    seed: int = 0,
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
    shard: str | None = None,
    check: bool = False,
) -> Path:
    """Prepare scans: orient, crop to the body, resample, normalise; one array per scan.

    Args:
        scans: folder of scans, dataset.json, table.csv or a single scan.
        out: the store: a folder, created or updated.
        test: number of subjects held out for testing.
        validation: number of subjects held out for validation.
        regions: sets of classes, also scored; they may overlap, such as 'WT=1,2,4;TC=1,4;ET=4';
            default: those of the data set.
        seed: seed of all random numbers.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.
        shard: I/N: prepare every N-th scan alone, from the I-th on, next to processes that
            prepare the others, such as 0/4; the same command without `shard` then completes the
            store.
        check: read every stored array and compare its checksum; damaged scans are prepared
            again; default: only arrays of another size or time than when they were written.

    Returns:
        The store's folder.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.prepare("scans/", out="store/")
    """

def pretrain(
    scans: AnyPath,
    *,
    out: AnyPath,
    task: str | Mapping[str, Any] | PretextTask = "masked",
    weights: float | Sequence[float] | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int = 8,
    crop: int | Sequence[int] | None = None,
    slices: Literal["axial", "coronal", "sagittal"] | None = None,
    probe: AnyPath | None = None,
    seed: int = 0,
    resume: bool = False,
    network: AnyPath | Mapping[str, Any] = "plain",
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
    learning_rate: float = 0.001,
    weight_decay: float = 0.01,
    accumulate: int = 1,
    save_every: int = 100,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    devices: int | None = None,
    log_to: Literal["wandb", "mlflow"] | None = None,
    compile: bool = False,
    encoder: nn.Module | None = None,
    on_metrics: OnMetrics | None = None,
) -> Path:
    """Pre-train an encoder on scans without labels, by a self-supervised task.

    Args:
        scans: folder of scans, or a store made by `selfvox prepare`.
        out: the run: a folder, created.
        task: pretext task, with its options as task["OPTION"]; or several tasks, such as
            rotation+simclr, with their options as task["NAME.OPTION"].
        weights: for several tasks: weight of each loss, such as (1, 0.5); default: 1 each.
        steps: optimiser steps; default, unless `epochs` is given: by the voxels of the scans,
            fewer on a CPU.
        epochs: passes over the scans, instead of `steps`.
        minutes: train for about so many minutes, instead of `steps`: a few steps are timed, and
            the number that fits is recorded in the run.
        batch: images per batch and device.
        crop: size of the crops in voxels, such as (64, 64, 64); default: from the scans.
        slices: train in 2D on these slices of the volumes; default: train on the volumes.
        probe: labelled scans, or a store of such, for a linear and a nearest-neighbour probe of
            the frozen encoder, run five times; never trained on.
        seed: seed of all random numbers.
        resume: continue the run in OUT.
        network: encoder: plain or residual (nnU-Net's), resenc (its presets M and L),
            monai:NAME or timm:NAME; or a run or nnU-Net's plans (nnUNetPlans.json,
            nnUNetPlans.json:2d), to use the same architecture; settings as network["SETTING"],
            such as network={..., "channels": (16, 32, 64, 128)}.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.
        learning_rate: peak learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        accumulate: batches per optimiser step: their gradients are accumulated.
        save_every: steps between checkpoints.
        precision: arithmetic: auto uses bf16 where the processor supports it, else fp32.
        device: device to compute on.
        devices: devices (processes) of each machine to train on; default: as many as torchrun
            or SLURM started on it, else 1.
        log_to: send the metrics to Weights & Biases (offline, unless WANDB_MODE says online) or
            MLflow too; never scans, their names or paths.
        compile: compile the encoder by torch.compile; worth it on long runs.
        encoder: a module to train, instead of `network`; it starts from the weights it has; in
            Python only.
        on_metrics: called as on_metrics(step, metrics) after each logged step; in Python only.

    Returns:
        The run's folder, which `finetune` takes as its encoder.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.pretrain("scans/", out="runs/pretrained")
    """

def finetune(
    labelled: AnyPath,
    *,
    out: AnyPath,
    encoder: AnyPath | nn.Module,
    labels: int | None = None,
    fraction: float | None = None,
    fold: str | None = None,
    folds: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int = 2,
    crop: int | Sequence[int] | None = None,
    slices: Literal["axial", "coronal", "sagittal"] | None = None,
    unlabelled: AnyPath | None = None,
    teacher: Literal["auto", "atlas", "network", "both"] = "auto",
    registrations: int = 24,
    rounds: int = 1,
    seed: int = 0,
    resume: bool = False,
    network: AnyPath | Mapping[str, Any] = "plain",
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
    augment: Literal["none", "light", "strong"] | None = None,
    mirror: str | Sequence[str] | None = None,
    first_conv: Literal["mean", "tile", "random"] | None = None,
    freeze: Literal["warmup", "always", "never", "lora"] = "warmup",
    warmup: float = 0.0625,
    schedule: Literal["ramp", "sawtooth"] = "ramp",
    encoder_lr: float = 0.1,
    head: Literal["full", "linear"] = "full",
    loss: Literal["dice", "log-dice", "dice+ce"] = "log-dice",
    class_weights: float | Sequence[float] | None = None,
    regions: str | None = None,
    train_on: Literal["classes", "regions"] = "classes",
    ordinal: bool = True,
    balance: bool = False,
    encoder_dropout: float = 0.0,
    decoder_dropout: float = 0.0,
    dropout_kind: Literal["element", "channel"] = "element",
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    validate_every: int | None = None,
    keep: Literal["last", "best"] = "last",
    subset_seed: int | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    devices: int | None = None,
    log_to: Literal["wandb", "mlflow"] | None = None,
    on_metrics: OnMetrics | None = None,
) -> Path:
    """Fine-tune an encoder to segment by labels, to classify by grades, or to predict numbers.

    `encoder="none"` trains from scratch.

    Args:
        labelled: folder of scans with labels, table with grades or targets, or a store.
        out: the run: a folder, created.
        encoder: a pre-training run, its encoder/ folder, a fine-tuning run, or none: train from
            scratch.
        labels: number of labelled subjects to train on; default: all.
        fraction: share of the labelled training subjects to train on, instead of `labels`.
        fold: cross-validation: K/N tests on fold K of N, such as 2/5.
        folds: train so many networks, which predict together: each validates on its own part of
            the labelled subjects and trains on the others; the runs are OUT/fold_1, OUT/fold_2,
            ....
        steps: optimiser steps; default, unless `epochs` is given: by the voxels of the labelled
            scans, fewer on a CPU.
        epochs: passes over the labelled training scans, instead of `steps`; of copies and
            pseudo-labels, as if all crops were of labelled scans.
        minutes: train for about so many minutes, instead of `steps`: a few steps are timed, and
            the number that fits is recorded in the run.
        batch: crops per step and device.
        crop: size of the crops in voxels; default: from the scans.
        slices: train in 2D on these slices of the volumes; default: train on the volumes.
        unlabelled: more scans like these, without labels, to train on too; `teacher` says how.
            They can also do harm: the labelled scans decide who teaches, and those that
            validate show the gain; with a single labelled scan nothing does, and `teacher` has
            to be given.
        teacher: who teaches on unlabelled scans: atlas (copies of the labelled scans are moved
            onto their anatomies by registration), network (a first network labels them, and a
            second one learns what its passes agree on), both, or auto: atlas where registration
            carries labels from one labelled scan to another, else network; with a single
            labelled scan nothing shows who should teach: atlas for anatomy that all people
            have, network for lesions.
        registrations: of the atlas: at most so many registrations to unlabelled scans.
        rounds: of the network as a teacher: how often it labels the scans and is trained again.
        seed: seed of all random numbers.
        resume: continue the run in OUT.
        network: encoder: plain or residual (nnU-Net's), resenc (its presets M and L),
            monai:NAME or timm:NAME; or a run or nnU-Net's plans (nnUNetPlans.json,
            nnUNetPlans.json:2d), to use the same architecture; settings as network["SETTING"],
            such as network={..., "channels": (16, 32, 64, 128)}.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.
        augment: how much training scans are varied: light (small rotations and zooms, contrast,
            brightness, noise) or strong (larger ones, also gamma, blur and low resolution),
            which needs 1000 steps or more; default: strong to segment, else light.
        mirror: axes along which half of the training scans are mirrored: none, all, or some of
            left-right, front-back, up-down, separated by commas; right where a mirrored scan
            could be a real one, wrong for left-right if classes tell left from right; default:
            none to segment or with augment="none", else all.
        first_conv: how to adapt the first convolution to scans of other channels than the
            encoder's: weights averaged, repeated or random; default: refuse such scans.
        freeze: when the pre-trained encoder is frozen: in the first steps, always, never, or
            always but for low-rank changes of its layers (lora).
        warmup: share of the steps with a frozen encoder; in the papers 25 of 400 epochs.
        schedule: learning rates with a pre-trained encoder: ramp: the encoder's rises at its
            release; sawtooth: that of the decoder also falls to 0 before the release, and rises
            again.
        encoder_lr: peak learning rate of a pre-trained encoder, as a multiple of
            `learning_rate`; from scratch all layers have the same.
        head: layers after the encoder: full (a decoder; two layers for classification) or one
            linear layer, which with freeze="always" is a linear probe.
        loss: log-dice: minus the logarithm of soft Dice, which keeps small classes alive; dice:
            minus soft Dice (paper B eq. 2); dice+ce: minus soft Dice, plus cross-entropy.
        class_weights: weight of the Dice of each class in the loss, the background first, such
            as (1, 2, 2), or of each region; default: all the same.
        regions: sets of classes, also scored; they may overlap, such as 'WT=1,2,4;TC=1,4;ET=4';
            default: those of the data set.
        train_on: output of the network: one class per voxel, or each region separately.
        ordinal: classes are ordered, such as grades: a near miss costs less than a far one.
        balance: classification: draw every class equally often.
        encoder_dropout: dropout rate after each activation of the encoder, in training;
            `predict `passes`` then uses it too.
        decoder_dropout: the same for the decoder, or the layers that classify.
        dropout_kind: drop single units, or whole channels.
        learning_rate: peak learning rate of AdamW; default: 0.004 to segment, else 0.001.
        weight_decay: decoupled weight decay of AdamW.
        validate_every: steps between validations; default: a fifth of the steps, and four times
            before.
        keep: weights to keep: the last, or the best by validation.
        subset_seed: seed that chooses the labelled subjects; default: `seed`.
        precision: arithmetic: auto uses bf16 where the processor supports it, else fp32.
        device: device to compute on.
        devices: devices (processes) of each machine to train on; default: as many as torchrun
            or SLURM started on it, else 1.
        log_to: send the metrics to Weights & Biases (offline, unless WANDB_MODE says online) or
            MLflow too; never scans, their names or paths.
        on_metrics: called as on_metrics(step, metrics) after each logged step; in Python only.

    Returns:
        The run's folder, which `predict` takes.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.finetune("labelled/", encoder="runs/pretrained", labels=10, out="runs/seg")
    """

def predict(
    run: AnyPath,
    scans: AnyPath,
    *,
    out: AnyPath,
    subset: Literal["all", "train", "validation", "test", "unlabelled"] = "all",
    replace: bool = False,
    format: Literal["nii.gz", "nrrd", "mha"] = "nii.gz",
    dicom: Literal["binary", "labelmap"] | None = None,
    codes: AnyPath | None = None,
    bids: bool = False,
    force: bool = False,
    probabilities: bool = False,
    overlap: float = 0.5,
    mirror: bool = False,
    seed: int = 0,
    source: str = "auto",
    passes: int = 1,
    encoder_dropout: float | None = None,
    decoder_dropout: float | None = None,
    dropout_kind: Literal["element", "channel"] | None = None,
    vote: Literal["majority", "weighted", "borda", "union", "mean"] = "majority",
    vote_weights: float | Sequence[float] | None = None,
    union_class: str | None = None,
    maps: str | Sequence[str] = (),
    ensemble: AnyPath | Sequence[AnyPath] = (),
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> list[Path]:
    """Predict segmentations, each on the grid of its scan; or a table of classes.

    Args:
        run: a fine-tuning run, or a folder of the runs of all folds.
        scans: a folder of scans, one scan, or a .txt file with one scan a line.
        out: folder of the predictions; existing ones are kept.
        subset: predict only these subjects of the run's split, or only scans that have no
            label.
        replace: a scan that changed since it was predicted, such as a new export, replaces the
            old prediction; by default it becomes a case of its own, NAME~HASH.
        format: file format of the labels of volumes; nrrd and mha have the exact geometry of a
            scan in that format, or in DICOM, which filters of SimpleITK ask for.
        dicom: also write the labels of DICOM series as DICOM segmentations of this type, and
            maps as parametric maps, which have the patient and study of the series.
        codes: of `dicom`: table of the codes of classes, with the columns name, code, scheme
            (SCT for SNOMED CT) and meaning; default: by the name of the class.
        bids: also write the labels of scans with BIDS names as BIDS derivatives, into OUT/bids.
        force: also predict scans that are unlike those that the run was trained on.
        probabilities: also write the probability of every class.
        overlap: overlap of neighbouring windows, as a share of their size.
        mirror: also predict the scan mirrored along the axes of `finetune mirror=True`, and
            take the mean: 2, 4 or 8 times as long; several passes take turns instead, at no
            cost.
        seed: seed of all random numbers.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        passes: Monte-Carlo dropout: passes over each scan; 1: one prediction without dropout.
        encoder_dropout: dropout rate after each activation of the encoder; default: that of the
            training, or 0.3 if there was no dropout in it.
        decoder_dropout: the same for the decoder; default: that of the training.
        dropout_kind: drop single units, or whole channels; default: as in the training, or
            element.
        vote: rule that combines the passes.
        vote_weights: for vote="weighted": weight of a vote for each class, such as (1, 2, 2).
        union_class: for vote="union": the class to predict wherever any pass predicts it.
        maps: maps to write and draw, separated by commas: entropy, mutual-information,
            variance, percentiles.
        ensemble: more fine-tuning runs to combine with RUN, separated by commas.
        precision: arithmetic: auto uses bf16 where the processor supports it, else fp32.
        device: device to compute on.

    Returns:
        The files of the predicted labels, one per scan; for a classifier, the table.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.predict("runs/seg", "new_scans/", out="predictions/")
    """

def calibrate(
    run: AnyPath,
    labelled: AnyPath | None = None,
    *,
    passes: int | None = None,
    seed: int = 0,
    source: str = "auto",
    encoder_dropout: float | None = None,
    decoder_dropout: float | None = None,
    dropout_kind: Literal["element", "channel"] | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Measure on labelled scans how far predictions can be trusted.

    `predict `passes`` then writes the expected Dice of each class, and intervals of its
    volume; of whole scans, `predict` writes calibrated probabilities, and sets of classes.

    Args:
        run: a fine-tuning run, or a folder of folds.
        labelled: labelled scans that the run was not trained on, or a store of such; default:
            its validation subjects, of folds those of each fold.
        passes: Monte-Carlo dropout: passes over each scan, as many as `predict` will make;
            default: 20 to segment, and to classify 1, a plain prediction.
        seed: seed of all random numbers.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        encoder_dropout: dropout rate after each activation of the encoder; default: that of the
            training, or 0.3 if there was no dropout in it.
        decoder_dropout: the same for the decoder; default: that of the training.
        dropout_kind: drop single units, or whole channels; default: as in the training, or
            element.
        precision: arithmetic: auto uses bf16 where the processor supports it, else fp32.
        device: device to compute on.

    Returns:
        The file of the calibration, in the run; of a folder of folds, a table of the scans.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.calibrate("runs/seg")
    """

def evaluate(
    predictions: AnyPath,
    truth: AnyPath,
    *,
    out: AnyPath | None = None,
    regions: str | None = None,
    source: str = "auto",
) -> Rows:
    """Score predictions against the truth: Dice, distances in mm, volumes; kappa, accuracy, AUC.

    Args:
        predictions: folder of predictions.
        truth: folder or data set with true labels, or a table with grades.
        out: table of the scores to write, .csv.
        regions: sets of classes, also scored; they may overlap, such as 'WT=1,2,4;TC=1,4;ET=4';
            default: those of the run or the data set.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.

    Returns:
        The rows of the table of scores.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.evaluate("predictions/", "truth/", out="scores.csv")
    """

def report(
    folders: AnyPath | Sequence[AnyPath],
    *,
    out: AnyPath,
    scans: AnyPath | None = None,
    truth: AnyPath | None = None,
    watch: bool = False,
    single_file: bool = False,
    source: str = "auto",
) -> Path:
    """Make a page for the browser from runs, predictions, embeddings or studies, to look.

    The page opens offline, without a server. Of predictions it is a table that begins with the
    least trusted case, with a viewer of the scan, its label and its maps; marks are exported as
    a table. Of embeddings it is a map of the scans.

    Args:
        folders: runs, folders of predictions or embeddings, or studies; several make one
            report.
        out: folder of the report; an earlier report there is replaced.
        scans: the scans that were predicted; default: the folder that was named to `predict`.
        truth: folder or data set with true labels; default: the labels next to the scans, if
            any.
        watch: make the page of a run again every minute, until the run ends; the page reloads
            itself.
        single_file: everything in one page, with volumes of half the resolution where 10 MB
            need it.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.

    Returns:
        The page.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.report("predictions/", out="report/")
    """

def correct(
    predictions: AnyPath,
    *,
    out: AnyPath,
    corrections: AnyPath | None = None,
    scans: AnyPath | None = None,
    labelled: AnyPath | None = None,
    passed: bool = False,
    source: str = "auto",
) -> Path:
    """Take corrected predictions back as labels: a table of labelled scans to train on again.

    Corrected are labels that were changed in PREDICTIONS, and those of `corrections`.

    Args:
        predictions: a folder of predictions, as `predict` wrote it.
        out: folder of the table and the corrected labels, created.
        corrections: folder of corrected labels, named like the predictions, such as a report
            exports.
        scans: the scans, if they are elsewhere now.
        labelled: labelled scans that the run was trained on: they are in the table too.
        passed: also take predictions as labels that review_marks.csv marks with pass.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.

    Returns:
        The table, which `finetune` takes.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.correct("predictions/", labelled="labelled/", out="corrected/")
    """

def study(
    plan: AnyPath,
    *,
    out: AnyPath,
    data: AnyPath | None = None,
    corpus: AnyPath | None = None,
    scale: float = 1.0,
    dry_run: bool = False,
    table: bool = False,
    passes: int | None = None,
    shard: str = "0/1",
    scheduler: str | None = None,
) -> Rows:
    """Run a label-efficiency study: methods x labels x seeds, each with a from-scratch baseline.

    Args:
        plan: the plan, a .yaml file, or the name of a plan shipped with selfvox.
        out: the study: a folder, created; the same command again continues it.
        data: scans with labels; overrides the data of the plan.
        corpus: other scans to pre-train on, for methods with `scans: corpus`; overrides that of
            the plan.
        scale: share of all training steps to run, such as 0.01 for a trial.
        dry_run: prepare the scans, time a few steps, print the expected cost, and stop.
        table: no training; make tables and figures of the finished runs.
        passes: no training; predict with the finished runs by this many passes of Monte-Carlo
            dropout, for several places, rates and votes.
        shard: I/N: run every Nth cell from the Ith on, counted from 0; for job arrays.
        scheduler: address of a dask.distributed scheduler; its workers run the cells.

    Returns:
        The rows of the study's summary.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.study("plan.yaml", out="study/")
    """

def atlas(
    labelled: AnyPath,
    scans: AnyPath,
    *,
    out: AnyPath,
    atlases: int = 5,
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
) -> list[Path]:
    """Carry labels onto scans by registration: the labelled scans most like a scan vote.

    No network is trained. Several labelled scans also show how far they agree.

    Args:
        labelled: folder of scans with labels, or a store.
        scans: a folder of scans, one scan, or a .txt file with one scan a line.
        out: folder of the predictions; existing ones are kept.
        atlases: at most so many labelled scans vote for each scan.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.

    Returns:
        The files of the predicted labels, one per scan.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.atlas("labelled/", "new_scans/", out="predictions/")
    """

def embed(
    run: AnyPath,
    scans: AnyPath,
    *,
    out: AnyPath,
    crops: bool = False,
    query: str | None = None,
    by: str | Sequence[str] = (),
    table: AnyPath | None = None,
    source: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Path:
    """Describe each scan by one vector, the features that an encoder computes from it.

    Args:
        run: a pre-training run, its encoder/ folder, or a fine-tuning run.
        scans: a folder of scans, one scan, or a .txt file with one scan a line.
        out: folder of the vectors, table and pictures, created.
        crops: also write one vector for each crop of a scan, with its place.
        query: id, file or subject of one of the scans: list and draw the scans most like it.
        by: columns of `table`, or grade, separated by commas: colour the map by them, and
            measure how well the vectors tell them, and how unequally for the groups of the
            others, such as age,sex.
        table: CSV or TSV table with a row for each scan or subject, named in its first column;
            default: participants.tsv next to the scans.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        precision: arithmetic: auto uses bf16 where the processor supports it, else fp32.
        device: device to compute on.

    Returns:
        The file of the vectors, `embeddings.npz`.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.embed("runs/pretrained", "scans/", out="embeddings/")
    """

def suggest(
    embeddings: AnyPath,
    *,
    predictions: AnyPath | None = None,
    labelled: AnyPath | None = None,
    count: int = 5,
    by: Literal["trust", "coverage"] | None = None,
    out: AnyPath | None = None,
) -> Rows:
    """Suggest which scans to label next: those that are least trusted, and unlike each other.

    Args:
        embeddings: a folder of vectors of the scans, as `embed` wrote it.
        predictions: predictions of these scans by several passes, for their trust.
        labelled: scans that are labelled already: left out, and others are unlike them.
        count: how many scans to suggest.
        by: trust: the least trusted; coverage: the most unlike those that are labelled or
            suggested; default: both, as far as they are known.
        out: table of the suggestions, .csv.

    Returns:
        A row for each suggested scan, the first one first.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.suggest("embeddings/", predictions="predictions/")
    """

def convert(
    scans: AnyPath,
    *,
    out: AnyPath,
    bids: str | Sequence[str] | None = None,
    source: str = "auto",
) -> list[Path]:
    """Write scans of any layout and format as NIfTI files, without texts of their headers.

    Args:
        scans: a folder of scans, one scan, or a .txt file with one scan a line.
        out: the folder, created; of scans with labels, without `bids`, a data set of nnU-Net.
        bids: write a BIDS folder instead; the suffix of each channel, such as T1w or T1w,FLAIR.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.

    Returns:
        The files, a scan with its channels after the other.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.convert("dicom/", out="nifti/")
    """

def export(
    run: AnyPath,
    *,
    to: Literal["nnunet", "nnssl", "huggingface", "onnx", "monai"],
    out: AnyPath,
    plans: str | None = None,
    channels: int | None = None,
) -> Path:
    """Write the weights of a run in the format of another program.

    Args:
        run: a pre-training or fine-tuning run.
        to: nnunet: for nnUNetv2_train -pretrained_weights; nnssl: for nnUNetv2_train_pretrained
            of nnU-Net's development version; huggingface: a folder for a model page, without
            subjects; onnx: the network of a fine-tuning run for other runtimes, with its recipe
            as JSON; monai: a bundle of a fine-tuning run for MONAI and MONAI Label, which calls
            selfvox.
        out: the file, or of huggingface and monai the folder, created.
        plans: of nnunet: the plans of the data set that nnU-Net will train on, such as
            nnUNetPlans.json or nnUNetPlans.json:2d.
        channels: channels of the scans there, if others than the run's: weights of the first
            convolution are averaged.

    Returns:
        What was written.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.export("runs/pretrained", to="nnunet", plans="nnUNetPlans.json", out="w.pth")
    """

def adopt(
    file: AnyPath,
    *,
    layout: Literal["openmind", "medicalnet", "swinunetr", "voco", "nnunet", "torch"],
    out: AnyPath,
    network: str | Mapping[str, Any] | None = None,
) -> Path:
    """Import the weights of a published or other network, as an encoder that `finetune` takes.

    Args:
        file: file of weights that you have, such as .pth or .safetensors.
        layout: who made it: OpenMind (nnssl), MedicalNet, NVIDIA (swinunetr), VoCo, nnU-Net, or
            your own torch program.
        out: folder of the encoder, created.
        network: of nnunet: its plans; of torch: as in pretrain.

    Returns:
        The folder of the encoder.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.adopt("checkpoint_final.pth", layout="openmind", out="runs/openmind")
    """

def tissues(
    scans: AnyPath,
    *,
    out: AnyPath,
    source: str = "auto",
) -> Path:
    """Label three tissues in brain scans automatically, to pre-train a supervised baseline.

    Args:
        scans: folder of skull-stripped scans, such as T1 MRI of brains.
        out: folder of the labels and their table; existing ones are kept.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.

    Returns:
        The table of the labelled scans.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.tissues("scans/", out="labelled/")
    """

def download(
    dataset: str,
    folder: AnyPath,
) -> Path:
    """Download a task of the Medical Segmentation Decathlon, with its labels.

    Args:
        dataset: name of the task, such as Task07_Pancreas.
        folder: folder to create the task's folder in.

    Returns:
        The folder of the task, which the other commands take.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.download("Task07_Pancreas", "data/")
    """

def preview(
    scans: AnyPath,
    *,
    out: AnyPath = "preview.png",
    task: str | Mapping[str, Any] | PretextTask = "masked",
    crop: int | Sequence[int] | None = None,
    slices: Literal["axial", "coronal", "sagittal"] | None = None,
    count: int = 3,
    seed: int = 0,
    source: str = "auto",
    size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    intensity: str = "auto",
    workers: int = 0,
    scheduler: str | None = None,
) -> Path:
    """Draw the examples that a pretext task makes from your scans, as a picture.

    Args:
        scans: folder of scans, or a store.
        out: the picture to write, .png.
        task: pretext task, with its options as task["OPTION"]; or several tasks, such as
            rotation+simclr, with their options as task["NAME.OPTION"].
        crop: size of the crops in voxels; default: from the scans.
        slices: train in 2D on these slices of the volumes; default: train on the volumes.
        count: number of scans to show.
        seed: seed of all random numbers.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        size: resize every scan to this many voxels per axis, such as (128, 128, 128).
        spacing: resample every scan to this spacing in mm, such as (1, 1, 1).
        intensity: normalisation: auto, mri (z-score), ct (fixed window) or photo; one for all
            channels, or one per channel, separated by commas.
        workers: processes that prepare scans; 0: one per core.
        scheduler: address of a dask.distributed scheduler; its workers prepare the scans.

    Returns:
        The picture.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.preview("scans/", out="preview.png")
    """

def demo(
    *,
    out: AnyPath = "demo",
    seed: int = 0,
) -> Path:
    """Run the whole workflow on synthetic scans, in minutes.

    Pre-train, fine-tune, train a from-scratch baseline, predict and score.

    Args:
        out: folder of the demo; must be empty or new.
        seed: seed of all random numbers.

    Returns:
        The folder of the demo.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.demo(out="demo")
    """

def doctor(
    scans: AnyPath | None = None,
    *,
    out: AnyPath = "runs",
    source: str = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Rows:
    """Check this computer before a long run: libraries, memory, disk, GPU.

    Each line is ok, warn or fail, with what to do. Exit code 5 if a line is fail, else 0.
    It takes seconds and leaves no file behind; convolutions are compared with float64.

    Args:
        scans: scans, or a store, of the run to come: what they need is estimated.
        out: folder where stores and runs are to be.
        source: layout of the scans on disk: auto, bids (or bids:T1w), brats, decathlon, dicom
            (or dicom:allow-gap), folder, nnunet or table.
        device: device to compute on.

    Returns:
        The lines, in the order in which they are printed.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.doctor("scans/", out="runs/")
    """

def info(
    subject: Literal["all", "tasks"] = "all",
    *,
    json: bool = False,
) -> dict[str, Any]:
    """List versions, devices, tasks, encoders and sources; `info tasks` describes each task.

    Args:
        subject: all, or tasks: what each task does, its options and its cost.
        json: print JSON.

    Returns:
        The listed facts by name.

    Raises:
        SelfvoxError: an invalid argument, scan or run; the message names the remedy.

    Example:
        selfvox.info("tasks")
    """

def load_classifier(
    run: AnyPath | Sequence[AnyPath],
    *,
    encoder: nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedClassifier:
    """Load the classifier of a fine-tuning run, or several that predict together.

    Args:
        run: a fine-tuning run, or a list of them.
        encoder: a copy gets the weights; needed if the run was made with `encoder=`, a module of
            yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `predict(scan)`, for a path, an array or an image of nibabel; `network` is
        the PyTorch module.

    Raises:
        SelfvoxError: a run has no intact classifier; the message names the remedy.

    Example:
        selfvox.load_classifier("runs/grades").predict("scan.png").name
    """

def load_encoder(
    run: AnyPath,
    *,
    network: nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedEncoder:
    """Load the encoder of a run, for embeddings and feature maps of scans.

    Args:
        run: a pre-training run, its encoder/ folder, or a fine-tuning run.
        network: gets the weights; needed if the run was made with `encoder=`, a module of yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `embed(scan)` and `maps(scan)`, for a path, an array or an image of nibabel;
        `network` is the PyTorch module, `module` the network inside, of its library's own class.

    Raises:
        SelfvoxError: the run has no intact encoder; the message names the remedy.

    Example:
        selfvox.load_encoder("runs/pretrained").embed("scan.nii.gz")
    """

def load_segmenter(
    run: AnyPath | Sequence[AnyPath],
    *,
    encoder: nn.Module | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> LoadedSegmenter:
    """Load the segmenter of a fine-tuning run, or several that predict together.

    Args:
        run: a fine-tuning run, or a list of them.
        encoder: a copy gets the weights; needed if the run was made with `encoder=`, a module of
            yours.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16 or fp32.

    Returns:
        An object with `predict(scan)`, for a path, an array or an image of nibabel; `network` is
        the PyTorch module.

    Raises:
        SelfvoxError: a run has no intact segmenter; the message names the remedy.

    Example:
        selfvox.load_segmenter("runs/seg").predict("scan.nii.gz").label
    """
