"""Requests of `finetune` that are impossible, refused before any scan is prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crop_size import DIVISOR, check_edges
from selfvox.data.sources import Dataset, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.models.build import build_encoder, check_network, is_python_class, plans_divisor
from selfvox.ops.regions import parse_regions
from selfvox.settings.verbs import Finetune
from selfvox.training.folder_kind import check_scans
from selfvox.training.pretrained import Pretrained
from selfvox.uncertainty.mc_dropout import dropout_layers

# settings that mean nothing for labels, or for grades, and their options
FOREIGN_OPTIONS = {
    "labels": {"balance": "--balance", "ordinal": "--no-ordinal"},
    "grades": {
        "slices": "--slices",
        "regions": "--regions",
        "train_on": "--train-on",
        "loss": "--loss",
        "unlabelled": "--unlabelled",
        "class_weights": "--class-weights",
    },
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
        DataError: the scans are missing, or there are no labels and no grades.
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


def check_options(settings: Finetune, place: Path, *, has_labels: bool) -> None:
    """Refuse options of classification for labels, and options of segmentation for grades.

    Raises:
        UsageError: such an option is not at its default.
    """
    truth = "labels" if has_labels else "grades"
    task = "classification" if has_labels else "segmentation"
    for name, option in FOREIGN_OPTIONS[truth].items():
        if getattr(settings, name) != getattr(Finetune, name):  # the default
            raise UsageError(f"{name}: is for {task}, but {place} has {truth}; leave {option} out")


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
    if dataset is None:
        store = open_store(place)
        has_labels = any(case.has_label for case in store.cases)
        has_grades = any(case.grade is not None for case in store.cases)
        subjects = {
            case.subject
            for case in store.cases
            if (case.has_label if has_labels else case.grade is not None)
        }
        split = store.split()
        # `--fold` makes a new split of all subjects, `--folds` one of all but those of the test
        if split is not None and settings.fold is None:
            subjects -= set(split.test)
            if settings.folds is None:
                subjects -= set(split.validation)
                besides = (
                    f", besides {len(split.validation)} for validation and {len(split.test)} for "
                    "testing"
                )
    else:
        cases = dataset.cases
        has_labels = any(case.label is not None for case in cases)
        has_grades = any(case.grade is not None for case in cases)
        subjects = {
            case.subject for case in cases if (case.label if has_labels else case.grade) is not None
        }
    if not has_labels and not has_grades:
        raise DataError(
            f"{place}: has neither labels nor grades; name a data set with labels, or a table with "
            "a grade; `selfvox pretrain` takes scans without"
        )
    check_options(settings, place, has_labels=has_labels)
    _check_counts(settings, len(subjects), besides)


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
    chosen = settings.labels or subjects
    if settings.fraction is not None:
        chosen = max(1, round(settings.fraction * subjects))
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
