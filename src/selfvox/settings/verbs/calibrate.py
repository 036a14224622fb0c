"""The settings of the verb `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from selfvox.settings.bounds import AtLeastOne
from selfvox.settings.verbs._checks import check_dropout, is_default
from selfvox.settings.verbs._shared import (
    DecoderDropout,
    Device,
    DropoutKind,
    EncoderDropout,
    Precision,
    Seed,
    Source,
)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure on labelled scans how far predictions can be trusted.

    `predict --passes` then writes the expected Dice of each class, and intervals of its
    volume; of whole scans, `predict` writes calibrated probabilities, and sets of classes.

    Returns:
        The file of the calibration, in the run; of a folder of folds, a table of the scans.

    Example:
        selfvox calibrate runs/seg
    """

    run: Annotated[Path, "a fine-tuning run, or a folder of folds"] = field(kw_only=False)
    labelled: Annotated[
        Path | None,
        "labelled scans that the run was not trained on, or a store of such; default: its "
        "validation subjects, of folds those of each fold",
    ] = field(default=None, kw_only=False)
    source: Source = "auto"
    passes: Annotated[
        int | None,
        "Monte-Carlo dropout: passes over each scan, as many as `predict` will make; default: 20 "
        "to segment, and to classify 1, a plain prediction",
        AtLeastOne,
    ] = None
    encoder_dropout: EncoderDropout = None
    decoder_dropout: DecoderDropout = None
    dropout_kind: DropoutKind = None
    seed: Seed = 0
    precision: Precision = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_dropout(self)
        for name in ("encoder_dropout", "decoder_dropout", "dropout_kind"):
            if self.passes == 1 and not is_default(self, name):
                raise ValueError(f"{name}: a single pass has no dropout; give --passes 20 too")
