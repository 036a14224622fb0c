"""The settings of the verb `predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from selfvox.settings.bounds import AtLeastOne, NotNegative
from selfvox.settings.verbs._checks import check_choice, check_dropout, is_default
from selfvox.settings.verbs._shared import (
    UNCERTAINTY,
    DecoderDropout,
    Device,
    DropoutKind,
    EncoderDropout,
    Precision,
    Seed,
    Source,
)

MAPS = ("entropy", "mutual-information", "variance", "percentiles")


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
        Literal["all", "train", "validation", "test", "unlabelled"],
        "predict only these subjects of the run's split, or only scans that have no label",
    ] = "all"
    replace: Annotated[
        bool,
        "a scan that changed since it was predicted, such as a new export, replaces the old "
        "prediction; by default it becomes a case of its own, NAME~HASH",
    ] = False
    format: Annotated[
        Literal["nii.gz", "nrrd", "mha"],
        "file format of the labels of volumes; nrrd and mha have the exact geometry of a scan in "
        "that format, or in DICOM, which filters of SimpleITK ask for",
    ] = "nii.gz"
    dicom: Annotated[
        Literal["binary", "labelmap"] | None,
        "also write the labels of DICOM series as DICOM segmentations of this type, and maps as "
        "parametric maps, which have the patient and study of the series",
    ] = None
    codes: Annotated[
        Path | None,
        "of --dicom: table of the codes of classes, with the columns name, code, scheme (SCT for "
        "SNOMED CT) and meaning; default: by the name of the class",
    ] = None
    bids: Annotated[
        bool,
        "also write the labels of scans with BIDS names as BIDS derivatives, into OUT/bids",
    ] = False
    force: Annotated[
        bool, "also predict scans that are unlike those that the run was trained on"
    ] = False
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
        if self.codes is not None and self.dicom is None:
            raise ValueError("codes: are those of DICOM segmentations; give --dicom binary too")
        if self.passes > 1:
            check_dropout(self)
        for name in ("encoder_dropout", "decoder_dropout", "dropout_kind"):
            if self.passes == 1 and not is_default(self, name):
                raise ValueError(
                    f"{name}: a single pass has no dropout; give --passes too, such as --passes 20"
                )
        for name in self.maps:
            check_choice("maps", name, MAPS)
        for rule, name in (("weighted", "vote_weights"), ("union", "union_class")):
            if (self.vote == rule) != (getattr(self, name) is not None):
                raise ValueError(f"{name}: belongs to --vote {rule}; give both or neither")
