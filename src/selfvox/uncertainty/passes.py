"""Many passes over one scan by Monte-Carlo dropout (paper B 2.3).

One pass is one sub-network: its masks follow from the seed, the number of the pass and the layer
alone, and are the same in every window of every scan. Passes go through the network several at a
time, each with its own masks. Memory does not grow with their number: probabilities are handed out
slab by slab.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfvox.models.segmenter import Segmenter
from selfvox.models.slab import Slab, window_places, window_weights
from selfvox.models.sliding_window import WindowCounter, pad_to_window, without_margins
from selfvox.runs.progress import echo
from selfvox.uncertainty.accumulator import ScanPart
from selfvox.uncertainty.mc_dropout import PASSES_AT_ONCE, Dropout, DropoutMasks
from selfvox.uncertainty.split_network import split_network

# bytes for the unfinished logits of the passes that go over the scan together
SLAB_BYTES = {"cpu": 2**28, "cuda": 2**31, "mps": 2**28}
# a 3D convolution of one smaller sample leaves oneDNN's fast path; two are then faster than one
SMALL_VOXELS = 56**3

# called with the number of a pass, a part of the scan, and the probabilities there
PassReceiver = Callable[[int, ScanPart, Tensor], None]


class _DropLayer(nn.Module):
    """A place in the network where units are dropped at a rate."""

    def __init__(self, drop: Callable[[Tensor, float], Tensor], rate: float):
        super().__init__()
        self.drop = drop
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x, self.rate)


class SubNetworks:
    """A trained segmenter with dropout, while entered; pass t is its t-th sub-network.

    Args:
        network: trained.
        dropout: where and how units are dropped.
        overlapping: its outputs are regions, each with a probability of its own.

    Raises:
        UsageError: there is no activation where dropout is asked for.
    """

    def __init__(self, network: Segmenter, dropout: Dropout, overlapping: bool = False):
        self.network = network
        self.dropout = dropout
        self.overlapping = overlapping
        self.masks = DropoutMasks(network.encoder, network.decoder, dropout)

    @functools.cached_property
    def _parts(self) -> tuple[nn.Module, nn.Module] | None:
        """The network before and after the first dropout; None where torch.fx cannot trace it."""
        layers = {module: _DropLayer(self.masks.drop, rate) for module, rate in self.masks.layers}
        parts = split_network(nn.Sequential(self.network.encoder, self.network.decoder), layers)
        if parts is None:
            name = type(self.network.encoder).__name__
            echo(f"{name}: torch.fx cannot trace it, so that passes share less and take longer")
        return parts

    def __enter__(self) -> SubNetworks:
        if self._parts is None:
            self.masks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.masks.__exit__(*error)

    def shared(self, window: Tensor) -> list[Tensor]:
        """What the passes share of a window (1, channel, *space): all before the first dropout.

        Of a network that torch.fx cannot trace: the encoder's maps, or the window itself.
        """
        if self._parts is None and self.dropout.encoder > 0:
            return [window]
        early = self.network.encoder if self._parts is None else self._parts[0]
        is_volume = window.ndim == 5
        if window.device.type == "cpu" and is_volume and window[0, 0].numel() < SMALL_VOXELS:
            window = torch.cat([window, window])
        return [values[:1] for values in early(window)]

    def logits(
        self, shared: Sequence[Tensor], passes: Sequence[int], size: Sequence[int]
    ) -> Tensor:
        """Logits (pass, class, *size) of these passes."""
        self.masks.begin(passes)
        batch = [values.expand(len(passes), *values.shape[1:]) for values in shared]
        if self._parts is not None:
            return self.network.resize_logits(self._parts[1](*batch), size)
        maps = self.network.encoder(batch[0]) if self.dropout.encoder > 0 else batch
        return self.network.decode(maps, size)


def run_passes(
    networks: SubNetworks,
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    receive: PassReceiver,
    slice_axis: int | None = None,
    count_windows: WindowCounter | None = None,
) -> None:
    """Predict a scan by many sub-networks, with the windows and weights of `segment_scan`.

    As many passes as memory allows go over the scan together, so that what they share is computed
    once for all of them.

    Args:
        networks: entered.
        image: (channel, *space).
        window: edges of the windows in voxels.
        overlap: share by which neighbours overlap.
        passes: numbers of the sub-networks.
        receive: called with the number of a pass, a part of the scan, and the probabilities (class
            or region, *part) there; every voxel of every pass once.
        slice_axis: a 2D network's: each slice along this axis of the volume is a picture of its
            own.
        count_windows: called after every few windows, each counted once for every pass.
    """
    if slice_axis is None:
        _sweep_all(networks, image, window, overlap, passes, receive, count_windows)
        return
    for place, picture in enumerate(image.unbind(1 + slice_axis)):

        def receive_slice(
            number: int, scan_part: ScanPart, probabilities: Tensor, place: int = place
        ) -> None:
            """Give a part of the picture its place in the volume."""
            in_volume = (*scan_part[:slice_axis], slice(place, place + 1), *scan_part[slice_axis:])
            receive(number, in_volume, probabilities.unsqueeze(1 + slice_axis))

        _sweep_all(networks, picture, window, overlap, passes, receive_slice, count_windows)


def _sweep_all(
    networks: SubNetworks,
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    receive: PassReceiver,
    count_windows: WindowCounter | None,
) -> None:
    """All passes over a volume or a picture, in blocks as large as memory allows."""
    padded, margins = pad_to_window(image[None], window)
    size = padded.shape[2:]
    inside = image.shape[1:]
    other_axes = (slice(None),) * (len(size) - 1)

    def receive_planes(number: int, first: int, probabilities: Tensor) -> None:
        """Leave out what the scan was padded with; `first` is the number of the first plane."""
        planes, inner = without_margins(probabilities, first, margins, inside)
        if inner.numel():
            receive(number, (planes, *other_axes), inner)

    batch = PASSES_AT_ONCE[image.device.type]
    slab_bytes = 4 * networks.network.classes * window[0] * math.prod(size[1:])  # of one pass
    # full batches only
    block = max(1, SLAB_BYTES[image.device.type] // slab_bytes // batch) * batch
    for start in range(0, len(passes), block):
        of_block = passes[start : start + block]
        _sweep(networks, padded, window, overlap, of_block, receive_planes, count_windows)


def _sweep(
    networks: SubNetworks,
    padded: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    receive: Callable[[int, int, Tensor], None],
    count_windows: WindowCounter | None,
) -> None:
    """One way through the scan, with the logits of all passes in a slab that moves along."""
    size = padded.shape[2:]
    slab = Slab(len(passes), networks.network.classes, (window[0], *size[1:]), padded.device)
    weight = window_weights(window, padded.device)
    batch = PASSES_AT_ONCE[padded.device.type]
    position = 0  # of the slab's first plane

    def finish(planes: int) -> None:
        """Hand out the first planes, which no later window reaches, and move on."""
        for number, logits in zip(passes, slab.mean_logits(planes), strict=True):
            is_regions = networks.overlapping
            receive(number, position, logits.sigmoid() if is_regions else logits.softmax(0))
        slab.move(planes)

    windows = window_places(size, window, overlap)
    for start, row in itertools.groupby(windows, key=lambda place: int(place[0].start)):
        if start > position:
            finish(start - position)
            position = start
        for place in row:
            shared = networks.shared(padded[(slice(None), slice(None), *place)])
            slab.add_weight(place[1:], weight)
            for first in range(0, len(passes), batch):
                numbers = passes[first : first + batch]
                logits = _logits(networks, shared, numbers, window)
                slab.add(first, place[1:], logits.float().mul_(weight))
                if count_windows is not None:
                    count_windows(len(numbers))
    finish(window[0])


def _logits(
    networks: SubNetworks, shared: Sequence[Tensor], passes: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Logits (pass, class, *size) of a few passes; in halves where they fill the memory."""
    batch = list(passes)
    if shared[0].device.type == "cpu":
        # always a full batch: the arithmetic of a single pass differs in the last digit
        batch += [passes[-1]] * (PASSES_AT_ONCE["cpu"] - len(passes))
    try:
        return networks.logits(shared, batch, size)[: len(passes)]
    except torch.OutOfMemoryError:
        if len(passes) == 1:
            raise
    half = len(passes) // 2
    halves = (passes[:half], passes[half:])
    return torch.cat([_logits(networks, shared, numbers, size) for numbers in halves])
