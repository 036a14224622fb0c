"""What an encoder is fine-tuned for: the contract of a downstream task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import choose_crop
from selfvox.models.encoder import Encoder
from selfvox.runs.card import NetworkCard
from selfvox.runs.device import Fabric
from selfvox.training.loop import Objective


class Validation(NamedTuple):
    """What the validation scans say of a network."""

    score: float  # -inf where it is not defined
    metrics: dict[str, float]  # by name, as they are logged
    lost: tuple[str, ...] = ()  # what is not learnt: classes, regions or the target
    cases: tuple[Mapping[str, Any], ...] = ()  # a row for each scan, with the same columns


class DownstreamTask(ABC):
    """A network around an encoder, its loss, its training data and its score.

    `finetune` does everything that all downstream tasks have in common.
    """

    score: str  # of a validation, the larger the better; saved as `validation_SCORE`
    learning_rate: float  # peak, of the layers after the encoder
    augment: str  # how much its training scans are varied
    mirrored: tuple[str, ...]  # names of the axes along which these are mirrored
    scans: str  # what the training scans are called, such as "labelled scans"

    @abstractmethod
    def usable(self, case: StoredCase) -> bool:
        """Whether the case has the truth that this task learns from."""

    def untaught(self, training: Sequence[StoredCase]) -> list[str]:
        """The names of the classes that no training case has."""
        return []

    @abstractmethod
    def strata(self, cases: Sequence[StoredCase]) -> dict[str, int]:
        """A class by subject, to stratify the split by; empty where subjects have no class."""

    def input_size(
        self,
        requested: Sequence[int] | None,
        cases: Sequence[StoredCase],
        divisor: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        """Edges of what the network is shown: the requested ones, or a crop that suits the cases.

        Args:
            requested: the setting `crop`.
            cases: of the training, in the plane of their slices.
            divisor: what the encoder needs each edge to be a multiple of.

        Raises:
            UsageError: edges that do not fit the cases or the divisor.
        """
        return choose_crop(requested, cases, divisor)

    @abstractmethod
    def network(self, encoder: Encoder, spec: Mapping[str, Any]) -> nn.Module:
        """The encoder, as the attribute `encoder`, with new layers after it.

        Args:
            encoder: pre-trained or not.
            spec: what the encoder was built from.
        """

    @abstractmethod
    def card(self, **shared: Any) -> NetworkCard:
        """What is saved with the weights; `predict` needs it.

        Args:
            shared: the fields that all networks have, except `step` and `score`.
        """

    @abstractmethod
    def objective(
        self, network: nn.Module, training: Sequence[StoredCase], frozen_steps: int
    ) -> Objective:
        """What is optimised; the encoder is frozen for the first `frozen_steps`."""

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
    ) -> Validation:
        """The score on whole scans and all metrics; the network is in evaluation mode."""

    @abstractmethod
    def describe_lost(self, lost: Sequence[str], scan: str) -> tuple[str, str]:
        """What is wrong with a network that has lost these classes, and what may mend it.

        Args:
            lost: as of a validation.
            scan: what they were looked for in, such as "validation scan".

        Returns:
            For `warning: {problem}; train again with {options}`.
        """
