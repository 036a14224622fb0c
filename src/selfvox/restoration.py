"""What tasks that restore an image share: their head is the decoder of a U-Net, and is kept."""

from __future__ import annotations

from abc import ABC

from torch import nn

from selfvox.models.encoder import Encoder
from selfvox.models.restorer import Restorer
from selfvox.pretext import PretextTask


class RestorationTask(PretextTask, ABC):
    """A task with the decoder of a U-Net as its head, which a segmenter starts from."""

    def head(self, encoder: Encoder) -> nn.Module:
        """The decoder of a U-Net."""
        return Restorer(encoder)

    def decoder(self, head: nn.Module) -> nn.Module:
        """The whole head: a segmenter's decoder."""
        assert isinstance(head, Restorer)
        return head.decoder
