"""The pre-trained encoder that a fine-tuning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from selfvox.runs.card import Card, EncoderCard
from selfvox.runs.weights import read_decoder, read_encoder
from selfvox.training.folder_kind import check_encoder


class Pretrained(NamedTuple):
    """An encoder on disk."""

    run: Path
    tensors: dict[str, Tensor]
    card: Card
    decoder: dict[str, Tensor] | None = None  # of a task that trains one

    @property
    def learned_from(self) -> str:
        """The pretext task, or the labels of a fine-tuning run."""
        if isinstance(self.card, EncoderCard):
            return str(self.card.task["name"])
        return f"the labels of {self.run.name}"


def read_pretrained(encoder: str) -> Pretrained | None:
    """The encoder of the setting `encoder`; None for `none`: from scratch.

    Raises:
        WeightsError: the encoder is missing or damaged, or the folder is something else.
    """
    if encoder.lower() == "none":
        return None
    run = Path(encoder)
    check_encoder(run)
    return Pretrained(run, *read_encoder(run), read_decoder(run))
