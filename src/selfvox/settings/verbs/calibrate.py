"""The settings of the verb `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from selfvox.settings.verbs._checks import check_dropout
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
        check_dropout(self)
