"""Dropout behind the activations of a trained network, at prediction time (paper B 2.3): pass t has masks of its own.

The masks of a pass follow from the seed, the number of the pass and the layer alone, and are the same for every input
of one size. Passes go through the network several at a time, each with its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from selfvox.errors import UsageError

# by name, since MONAI and timm have some of their own; no gates, such as nn.Sigmoid
ACTIVATIONS = {
    *(
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "PReLU",
        "ELU",
        "CELU",
        "SELU",
        "GELU",
        "GELUTanh",
        "QuickGELU",
        "SiLU",
        "Swish",
    ),
    *(
        "SwishMe",
        "MemoryEfficientSwish",
        "Mish",
        "MishMe",
        "Hardswish",
        "HardSwish",
        "HardSwishMe",
        "HardMish",
    ),
    "HardMishMe",
}
PASSES_AT_ONCE = {
    "cpu": 2,
    "cuda": 8,
    "mps": 4,
}  # on a CPU more at a time was no faster, one alone leaves the fast path
SHIFTS = 2**20  # places where a pass's mask may begin in the random sequence


def is_activation(module: nn.Module) -> bool:
    """Whether units are dropped behind it."""
    return any(kind.__name__ in ACTIVATIONS for kind in type(module).__mro__)


@dataclass(frozen=True)
class Dropout:
    """Where and how units are dropped."""

    encoder: float  # share of the units dropped behind each activation of the encoder
    decoder: float  # the same of all that lies upon it
    kind: Literal["channel", "element"]
    seed: int


class DropoutMasks:
    """Dropout behind each activation of an encoder and of what lies upon it, while entered.

    Dropping channels, a mask is a draw for each channel. Dropping elements, it is a stretch of one long random sequence
    that begins at a random place: any pass drops the same share, any two drop independently at a given position, and
    nothing has to be drawn or kept for each pass.

    Raises:
        UsageError: there is no activation where dropout was asked for.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, dropout: Dropout):
        self.dropout = dropout
        self.layers: list[tuple[nn.Module, float]] = []  # what is dropped behind, and how much
        for part, rate in ((encoder, dropout.encoder), (decoder, dropout.decoder)):
            found = [module for module in part.modules() if is_activation(module)]
            if rate > 0 and not found:
                raise UsageError(
                    f"dropout: {type(part).__name__} has no activation layer to drop units behind; set its rate to 0"
                )
            self.layers += [(module, rate) for module in found if rate > 0]
        self._hooks: list[RemovableHandle] = []
        self._now: Sequence[int] = ()
        self._site = itertools.count()
        self._sequences: dict[tuple[float, torch.dtype], Tensor] = {}
        self._drawn: dict[tuple[int, int], Any] = {}  # by pass and layer: what was drawn for it

    def __enter__(self) -> DropoutMasks:
        self._hooks = [
            module.register_forward_hook(self._hook(rate)) for module, rate in self.layers
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def begin(self, passes: Sequence[int]) -> None:
        """To be called before each way through the network: sample n of the batch will be of pass `passes[n]`."""
        self._now, self._site = passes, itertools.count()

    def _hook(self, rate: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, inputs, output: self.drop(output, rate)

    def drop(self, output: Tensor, rate: float) -> Tensor:
        """Drop units of (pass, channel, *space); in place, unless the passes share it."""
        site = next(self._site)  # counted by call: a network may use one activation in many places
        drawn = [self._draw(number, site, rate, output.shape[1]) for number in self._now]
        dropped = (
            torch.empty_like(output, memory_format=torch.contiguous_format)
            if _is_shared(output)
            else output
        )
        if self.dropout.kind == "channel":
            mask = torch.from_numpy(np.stack(drawn)).to(output)
            return torch.mul(
                output, mask.reshape(*mask.shape, *(1,) * (output.ndim - 2)), out=dropped
            )
        sequence = self._sequence(rate, output)
        for sample, start, target in zip(output, drawn, dropped, strict=True):
            torch.mul(
                sample, sequence[start : start + sample.numel()].view(sample.shape), out=target
            )
        return dropped

    def _draw(self, number: int, site: int, rate: float, channels: int) -> Any:
        """The mask of a pass's channels, or where its mask begins in the random sequence."""
        if (number, site) not in self._drawn:
            draw = np.random.default_rng((self.dropout.seed, number, site))
            by_channel = self.dropout.kind == "channel"
            self._drawn[number, site] = (
                (draw.random(channels) >= rate).astype(np.float32) / np.float32(1 - rate)
                if by_channel
                else int(draw.integers(SHIFTS))
            )
        return self._drawn[number, site]

    def _sequence(self, rate: float, like: Tensor) -> Tensor:
        """0 with probability `rate`, else 1 / (1 - rate); long enough for one sample of `like` from any start."""
        known = self._sequences.get((rate, like.dtype))
        if known is None or len(known) < SHIFTS + like[0].numel():
            # one stream of numbers, of which a longer sequence has the shorter one as its beginning
            draw = np.random.default_rng((self.dropout.seed, 2**32))
            kept = draw.random(SHIFTS + like[0].numel(), np.float32) >= rate
            known = self._sequences[rate, like.dtype] = (
                torch.from_numpy(kept).to(like).div_(1 - rate)
            )
        return known


def _is_shared(output: Tensor) -> bool:
    """Whether several passes look at one tensor, or one pass may look at what later ones need."""
    return len(output) == 1 or output.stride(0) == 0
