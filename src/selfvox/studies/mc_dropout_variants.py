"""The variants of Monte-Carlo dropout that paper B compares: places, rates and votes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from selfvox.uncertainty.vote_rules import VOTE_RULES

FOREGROUND_WEIGHT = 2.0  # of a weighted vote: paper B takes 1, 2, 2


@dataclass(frozen=True)
class Variant:
    """How a network predicts by many passes; without dropout, by one."""

    encoder: float = 0.0
    decoder: float = 0.0
    vote: str = "majority"
    maps: bool = False

    @property
    def folder(self) -> str:
        """Where its scores are, within a run."""
        if self == WITHOUT:
            return "dropout/without"
        suffix = "-maps" if self.maps else ""
        return f"dropout/encoder-{self.encoder:g}-decoder-{self.decoder:g}-{self.vote}{suffix}"


WITHOUT = Variant()
ENCODER = Variant(encoder=0.3)  # the best of paper B
DECODER = Variant(decoder=0.3)
MAPS = dataclasses.replace(ENCODER, maps=True)
PLACES = {
    "without": WITHOUT,
    "encoder": ENCODER,
    "decoder": DECODER,
    "both": Variant(encoder=0.3, decoder=0.3),
}
RATES = {f"{rate:g}": Variant(encoder=rate) for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}
VOTES = {vote: Variant(encoder=0.3, vote=vote) for vote in VOTE_RULES}
