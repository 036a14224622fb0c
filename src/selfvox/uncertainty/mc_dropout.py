"""Monte-Carlo dropout after the activations of a network (paper B 2.3).

The masks of a pass follow from the seed, the number of the pass and the layer alone, and are the
same for every input of one size. Passes go through the network several at a time, each with its own
masks.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from selfvox.errors import UsageError

# by name, since MONAI and timm have some of their own; no gates, such as nn.Sigmoid
# fmt: off
ACTIVATIONS = {
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU",
    "SiLU", "Swish", "SwishMe", "MemoryEfficientSwish", "Mish", "MishMe",
    "Hardswish", "HardSwish", "HardSwishMe", "HardMish", "HardMishMe",
}
# fmt: on
# passes in one batch; on a CPU more were not faster, and one alone leaves the fast path
PASSES_AT_ONCE = {"cpu": 2, "cuda": 8, "mps": 4}
SHIFTS = 2**20  # places where the mask of a pass may start in the random sequence


def is_activation(module: nn.Module) -> bool:
    """Whether units are dropped after it."""
    return any(kind.__name__ in ACTIVATIONS for kind in type(module).__mro__)


def dropout_layers(
    encoder: nn.Module, decoder: nn.Module, encoder_rate: float, decoder_rate: float
) -> list[tuple[nn.Module, float]]:
    """The activations after which units are dropped, in training and in prediction, with the rate.

    Raises:
        UsageError: a part has no activation, although its rate is not 0.
    """
    layers = []
    for network, rate in ((encoder, encoder_rate), (decoder, decoder_rate)):
        if rate == 0:
            continue
        activations = [module for module in network.modules() if is_activation(module)]
        if not activations:
            raise UsageError(
                f"dropout: {type(network).__name__} has no activation layer to drop units "
                "after; set its rate to 0"
            )
        layers += [(module, rate) for module in activations]
    return layers


@contextlib.contextmanager
def dropping(
    layers: Sequence[tuple[nn.Module, float]], drop: Callable[[Tensor, float], Tensor]
) -> Iterator[None]:
    """While entered, the output of each layer is what `drop` makes of it at the layer's rate."""

    def hook(rate: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, inputs, output: drop(output, rate)

    with contextlib.ExitStack() as hooks:
        for module, rate in layers:
            hooks.callback(module.register_forward_hook(hook(rate)).remove)
        yield


@dataclass(frozen=True)
class Dropout:
    """Where and how units are dropped."""

    encoder: float  # share of the units dropped after each activation of the encoder
    decoder: float  # the same for the decoder, or the head of a classifier
    kind: Literal["channel", "element"]
    seed: int


class DropoutMasks:
    """Dropout after each activation of an encoder and its decoder, while entered.

    Dropping channels, a mask is a draw for each channel. Dropping elements, it is a stretch of one
    long random sequence that starts at a random place: any pass drops the same share, any two drop
    independently at a given position, and nothing has to be drawn or kept for each pass.

    Args:
        encoder: part of a network.
        decoder: the other part.
        dropout: rates and seed.

    Raises:
        UsageError: a part has no activation, although its rate is not 0.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dropout: Dropout):
        self.dropout = dropout
        self.layers = dropout_layers(encoder, decoder, dropout.encoder, dropout.decoder)
        self._entered = contextlib.ExitStack()
        self._passes: Sequence[int] = ()  # of the current batch
        self._sites = itertools.count()
        self._sequences: dict[tuple[float, torch.dtype], Tensor] = {}
        self._draws: dict[tuple[int, int], Any] = {}  # by pass and site

    def __enter__(self) -> DropoutMasks:
        self._entered.enter_context(dropping(self.layers, self.drop))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.close()

    def begin(self, passes: Sequence[int]) -> None:
        """Start a forward pass; its sample n is of pass `passes[n]`."""
        self._passes = passes
        self._sites = itertools.count()

    def drop(self, output: Tensor, rate: float) -> Tensor:
        """Drop units of (pass, channel, *space); in place, unless the passes share it."""
        # sites are counted by call: a network may use one activation in many places
        site = next(self._sites)
        draws = [self._draw(number, site, rate, output.shape[1]) for number in self._passes]
        dropped = output
        if _is_shared(output):
            dropped = torch.empty_like(output, memory_format=torch.contiguous_format)
        if self.dropout.kind == "channel":
            mask = torch.from_numpy(np.stack(draws)).to(output)
            per_channel = mask.reshape(*mask.shape, *(1,) * (output.ndim - 2))
            return torch.mul(output, per_channel, out=dropped)
        sequence = self._sequence(rate, output)
        for sample, start, target in zip(output, draws, dropped, strict=True):
            mask = sequence[start : start + sample.numel()].view(sample.shape)
            torch.mul(sample, mask, out=target)
        return dropped

    def _draw(self, number: int, site: int, rate: float, channels: int) -> Any:
        """The mask (channel,) of a pass, or where it starts in the random sequence; drawn once."""
        if (number, site) not in self._draws:
            rng = np.random.default_rng((self.dropout.seed, number, site))
            if self.dropout.kind == "channel":
                mask = (rng.random(channels) >= rate).astype(np.float32)
                self._draws[number, site] = mask / np.float32(1 - rate)
            else:
                self._draws[number, site] = int(rng.integers(SHIFTS))
        return self._draws[number, site]

    def _sequence(self, rate: float, like: Tensor) -> Tensor:
        """Random sequence: 0 with probability `rate`, else 1 / (1 - rate).

        It is long enough for one sample of `like` from any start.
        """
        length = SHIFTS + like[0].numel()
        sequence = self._sequences.get((rate, like.dtype))
        if sequence is None or len(sequence) < length:
            # one stream of numbers: a longer sequence begins with the shorter one; 2**32 is no pass
            rng = np.random.default_rng((self.dropout.seed, 2**32))
            mask = rng.random(length, np.float32) >= rate
            # scaled as in training, so that the expected activation stays the same
            sequence = torch.from_numpy(mask).to(like).div_(1 - rate)
            self._sequences[rate, like.dtype] = sequence
        return sequence


def _is_shared(output: Tensor) -> bool:
    """Whether several passes use one tensor, or a single pass may use what later ones need."""
    return len(output) == 1 or output.stride(0) == 0
