"""The contract of a family of encoders: settings checked, planned for a crop, and built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from selfvox.models.encoder import Encoder

Settings = Mapping[str, Any]  # of a network; its `name` says which


class Family(ABC):
    """Encoders that are made in one way. Settings always have a `name`."""

    @property
    @abstractmethod
    def usage(self) -> str:
        """How `--network` names them: `plain`, or `monai:NAME`."""

    @abstractmethod
    def check(self, settings: Settings) -> None:
        """Refuse settings that are wrong for any scan.

        Raises:
            UsageError: an unknown network or setting; says what to do.
        """

    @abstractmethod
    def plan(
        self, settings: Settings, crop: Sequence[int], spacing_mm: Sequence[float]
    ) -> dict[str, Any]:
        """All that `build` needs, as plain values; planning these again changes nothing.

        Raises:
            UsageError: settings that do not fit crops of this size.
        """

    def check_input(self, spec: Settings, edges: Sequence[int]) -> None:  # noqa: B027
        """Refuse inputs that are too small for the encoder of a plan; by default none is.

        Raises:
            UsageError: they are; says what to do.
        """

    @abstractmethod
    def build(self, spec: Settings, spatial_dims: int, in_channels: int) -> Encoder:
        """Make the encoder of a plan, with fresh weights.

        Raises:
            UsageError: there is no such network, or not with these settings or dimensions.
        """
