"""Requests of `finetune` that are impossible, refused before any scan is prepared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import DIVISOR, check_edges
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, check_network, is_python_class, plans_divisor
from selfvox.ops.regions import parse_regions
from selfvox.settings.verbs import Finetune
from selfvox.training.finetune_split import count_validation
from selfvox.training.folder_kind import check_scans
from selfvox.training.pretrained import Pretrained
from selfvox.training.unlabelled import check_teacher
from selfvox.uncertainty.mc_dropout import dropout_layers

# settings that mean nothing for labels, grades or targets, and their options
_OF_GRADES = {"balance": "--balance", "ordinal": "--no-ordinal"}
_OF_LABELS = {
    "slices": "--slices",
    "regions": "--regions",
    "train_on": "--train-on",
    "loss": "--loss",
    "unlabelled": "--unlabelled",
    "class_weights": "--class-weights",
}
FOREIGN_OPTIONS = {
    "labels": _OF_GRADES,
    "grades": _OF_LABELS,
    "targets": _OF_LABELS | _OF_GRADES,
}


def check_request(
    settings: Finetune, pretrained: Pretrained | None, module: nn.Module | None = None
) -> Dataset | None:
    """Refuse what is impossible, as far as it is known before the scans are prepared.

    Args:
        settings: of the verb.
        pretrained: the encoder on disk; None: another one, or from scratch.
        module: the encoder from Python.

    Returns:
        The labelled scans as listed, so that their preparation need not walk a large folder again;
        None: they are a store.

    Raises:
        UsageError: an option that does not fit the labels, the encoder or the other options.
        DataError: the scans are missing, or there are no labels, grades and targets.
    """
    if pretrained is not None:
        _check_slices(settings, pretrained)
    # before the scans are listed, which may take minutes on a network drive
    check_network(settings.network)
    if settings.regions is not None:
        parse_regions(settings.regions)
    _check_crop(settings, pretrained)
    _check_dropout(settings, pretrained, module)
    dataset = _list_scans(settings)
    _check_labels(settings, dataset)
    return dataset


def check_options(settings: Finetune, place: Path, truth: str) -> None:
    """Refuse options of another task.

    Args:
        settings: of the verb.
        place: of the scans, for messages.
        truth: what they have: `labels`, `grades` or `targets`.

    Raises:
        UsageError: such an option is not at its default.
    """
    for name, option in FOREIGN_OPTIONS[truth].items():
        if getattr(settings, name) != getattr(Finetune, name):  # the default
            task = "classification" if name in _OF_GRADES else "segmentation"
            raise UsageError(f"{name}: is for {task}, but {place} has {truth}; leave {option} out")


def kind_of_truth(cases: Sequence[Case | StoredCase]) -> str | None:
    """What the scans are learnt from: `labels`, or else `grades`, or else `targets`; None: nothing.

    Args:
        cases: of the data set or the store.
    """
    return next((kind for kind in FOREIGN_OPTIONS if any(has_truth(c, kind) for c in cases)), None)


def has_truth(case: Case | StoredCase, kind: str) -> bool:
    """Whether a case has a truth of this kind: `labels`, `grades` or `targets`."""
    if kind == "labels":
        return case.has_label if isinstance(case, StoredCase) else case.label is not None
    return (case.grade if kind == "grades" else case.target) is not None


def _check_slices(settings: Finetune, pretrained: Pretrained) -> None:
    """Refuse a 2D encoder for a 3D network, and the other way round."""
    slices = pretrained.card.slices
    if slices and not settings.slices:
        raise UsageError(
            f"encoder: {settings.encoder} was pre-trained in 2D, on {slices} slices, and does not "
            f"fit a 3D network; use --slices {slices}"
        )
    if settings.slices and not slices:
        raise UsageError(
            f"slices: {settings.encoder} was not pre-trained on slices, so it does not fit a "
            f"network of slices; leave --slices out, or pre-train with --slices {settings.slices}"
        )


def _check_crop(settings: Finetune, pretrained: Pretrained | None) -> None:
    """Refuse edges that the encoder cannot halve, where its dimensions are known."""
    if settings.crop is None:
        return
    if pretrained is not None:
        d = pretrained.card.spatial_dims
        strides = pretrained.card.network.get("strides")
        # of other networks than the U-Nets, they are known when the network is built
        divisor = (1,) * d if strides is None else np.prod(strides, axis=0).tolist()
    else:
        is_2d = settings.slices is not None or len(settings.crop) == 2
        divisor = plans_divisor(settings.network) or (DIVISOR,) * (2 if is_2d else 3)
    check_edges(settings.crop, divisor)


def _check_dropout(
    settings: Finetune, pretrained: Pretrained | None, module: nn.Module | None
) -> None:
    """Refuse dropout in an encoder without activations, where the encoder is known."""
    if settings.encoder_dropout == 0:
        return
    encoder = module
    if pretrained is not None and not is_python_class(pretrained.card.network):
        card = pretrained.card
        encoder = build_encoder(card.network, card.spatial_dims, card.in_channels)
    if encoder is not None:
        dropout_layers(encoder, nn.Identity(), settings.encoder_dropout, 0.0)


def _list_scans(settings: Finetune) -> Dataset | None:
    """The labelled scans; None: they are a store."""
    if is_store(settings.labelled):
        return None
    check_scans(settings.labelled)
    return find_dataset(settings.labelled, settings.source)


def _check_labels(settings: Finetune, dataset: Dataset | None) -> None:
    """Compare the options with the labels that the scans come with."""
    place = settings.labelled
    besides = ""
    store = open_store(place) if dataset is None else None
    cases: Sequence[Case | StoredCase] = dataset.cases if dataset else store.cases if store else ()
    truth = kind_of_truth(cases)
    if truth is None:
        raise DataError(
            f"{place}: has neither labels nor grades; name a data set with labels, or a table with "
            "a grade or a target; `selfvox pretrain` takes scans without"
        )
    if truth == "grades" and any(has_truth(case, "targets") for case in cases):
        raise UsageError(
            f"{place}: has grades, which are classified, and targets, which are numbers to "
            "predict; name a table with one of the two columns"
        )
    subjects = {case.subject for case in cases if has_truth(case, truth)}
    split = None if store is None else store.split()
    labelled = set(subjects)
    # `--fold` makes a new split of all subjects, `--folds` one of all but those of the test
    if split is not None and settings.fold is None:
        subjects -= set(split.test)
        if settings.folds is None:
            subjects -= set(split.validation)
            besides = (
                f", besides {len(split.validation)} for validation and {len(split.test)} for "
                "testing"
            )
    check_options(settings, place, truth)
    _check_counts(settings, len(subjects), besides)
    _check_teacher(settings, labelled, split)


def _check_teacher(settings: Finetune, labelled: set[str], split: Split | None) -> None:
    """Refuse a single labelled subject where the labelled scans choose the teacher.

    Args:
        settings: of the verb.
        labelled: the subjects.
        split: of the store; with folds it is not used as it is, and `teach` checks again.
    """
    if settings.fold is not None or settings.folds is not None:
        return
    if split is None:
        validation = count_validation(len(labelled), settings.labels)
        training = len(labelled) - validation
    else:
        validation = len(labelled.intersection(split.validation))
        training = len(labelled.intersection(split.train))
    check_teacher(settings, _count_chosen(settings, training) + validation)


def _count_chosen(settings: Finetune, subjects: int) -> int:
    """How many of the subjects train, as `choose_subset` counts them."""
    if settings.fraction is not None:
        return max(1, round(settings.fraction * subjects))
    return settings.labels or subjects


def _check_counts(settings: Finetune, subjects: int, besides: str) -> None:
    """Refuse more labels than there are subjects with a label, and more folds than labels.

    Args:
        settings: of the verb.
        subjects: with a label, to choose from.
        besides: which others there are, in words.
    """
    place = settings.labelled
    if settings.labels is not None and settings.labels > subjects:
        raise UsageError(
            f"labels: {settings.labels} labelled subjects were asked for, and {place} has "
            f"{subjects} to train on{besides}; give 1 to {subjects}"
        )
    folds = settings.folds
    chosen = _count_chosen(settings, subjects)
    if settings.fold is not None:
        folds = int(settings.fold.partition("/")[2])
        chosen = subjects
    if folds is not None and folds > chosen:
        remedy = f"use 2 to {chosen}" if chosen > 1 else "a fold needs at least two"
        name = "folds" if settings.fold is None else "fold"
        raise UsageError(
            f"{name}: {folds} folds of {chosen} labelled subjects of {place} are impossible; "
            f"{remedy}"
        )
