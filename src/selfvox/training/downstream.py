"""What an encoder is fine-tuned for: the parts in which one goal differs from another; `finetune` does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from selfvox.data.preparation.store import Store, StoredCase
from selfvox.models.encoder import Encoder
from selfvox.training.loop import Objective


class DownstreamTask(ABC):
    """A network upon an encoder, the loss of its answers, the data that it learns from, and how good it is."""

    score: str  # what tells the best weights, the larger the better; the card has it as `validation_SCORE`
    scans: str  # what the training scans are called, such as "labelled scans"

    @abstractmethod
    def usable(self, case: StoredCase) -> bool:
        """Whether the case has the truth that this goal learns from."""

    @abstractmethod
    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:
        """A class for each subject, so that every part of a split has its share of each; empty where there is none."""

    @abstractmethod
    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> nn.Module:
        """The encoder, as `encoder`, with fresh layers upon it; `spec` is what the encoder was built from."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """What is saved beside the weights: all that `predict` needs to know besides encoder, recipe and crop."""

    @abstractmethod
    def objective(
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> Objective:
        """What is optimised; the encoder stands still for the first `frozen_steps`."""

    @abstractmethod
    def data(
        self, store: Store, training: Sequence[StoredCase], crop: Sequence[int], seed: int
    ) -> Dataset[dict[str, Tensor]]:
        """Samples by number, endless."""

    @abstractmethod
    def validate(
        self,
        network: nn.Module,
        fabric: Fabric,
        store: Store,
        cases: Sequence[StoredCase],
        crop: Sequence[int],
    ) -> tuple[float, dict[str, float]]:
        """The score on whole scans, and all that was measured, by name; the network is in evaluation mode.

        The score is -inf where it is not defined.
        """
