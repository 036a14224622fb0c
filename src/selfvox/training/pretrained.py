"""The pre-trained encoder that a fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from selfvox.runs.card import Card, EncoderCard
from selfvox.runs.progress import echo
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
    tensors, card = read_encoder(run)
    if isinstance(card, EncoderCard) and card.source is not None:
        echo(describe_source(card.source))
    return Pretrained(run, tensors, card, read_decoder(run))


def describe_source(source: Mapping[str, str]) -> str:
    """What is printed of weights from elsewhere at each use, in one line."""
    parts = [source.get("title", ""), f"licence: {source.get('licence', 'not known')}"]
    parts += [source[key] for key in ("scans", "citation") if source.get(key)]
    return f"weights of {'; '.join(parts)}"
