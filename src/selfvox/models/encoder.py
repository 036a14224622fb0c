"""The contract of an encoder: images in, feature maps out, finest first."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A network that turns images into feature maps, finest first."""

    spatial_dims: int
    in_channels: int
    channels: tuple[int, ...]  # per level, finest first
    strides: tuple[tuple[int, ...], ...]  # of each level relative to the input, per axis
    # of a decoder of its maps
    norm: str = "instance"  # instance, group or batch
    kernels: tuple[tuple[int, ...], ...] | None = None  # edges per level and axis; None: 3
    decoder_blocks: int | tuple[int, ...] = 2  # convolutions per level, or of each, coarsest first

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, channel, *space) -> one map per level, finest first."""

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.channels[-1]

    def embed(self, x: Tensor) -> Tensor:
        """(batch, channel, *space) -> (batch, width): the channel maxima of the coarsest map.

        The mean would be nearly constant where the last layer is an InstanceNorm, which sets it.
        """
        coarsest: Tensor = self(x)[-1]
        return coarsest.flatten(2).amax(2)
