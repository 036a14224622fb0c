"""Many passes over one scan by Monte-Carlo dropout (paper B 2.3): sub-networks, swept over it together.

One pass is one sub-network: its masks follow from the seed, the number of the pass and the layer alone, and are the
same in every window of every scan. Passes go through the network several at a time, each with its own mask. Memory does
not grow with their number: what they say is handed out slab by slab.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn

from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import pad_to_window
from selfvox.runs.progress import echo
from selfvox.uncertainty.accumulator import ScanPart
from selfvox.uncertainty.mc_dropout import PASSES_AT_ONCE, Dropout, DropoutMasks
from selfvox.uncertainty.split_network import split_network

ROOM = {
    "cpu": 2**28,
    "cuda": 2**31,
    "mps": 2**28,
}  # bytes for the unfinished logits of a block of passes
# a 3D convolution of one smaller sample leaves oneDNN's fast path; two are then faster than one
SMALL_VOXELS = 56**3


class _Drop(nn.Module):
    """A place in the network where units are dropped at a rate."""

    def __init__(self, drop: Callable[[Tensor, float], Tensor], rate: float):
        super().__init__()
        self.drop, self.rate = drop, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x, self.rate)


class SubNetworks:
    """A trained segmenter with dropout behind each of its activations, while entered; pass t is its t-th sub-network.

    Args:
        network: trained.
        dropout: where and how.
        overlapping: its outputs are regions, each with a probability of its own.

    Raises:
        UsageError: there is no activation where dropout was asked for.
    """

    def __init__(self, network: Segmenter, dropout: Dropout, overlapping: bool = False):
        self.network, self.dropout, self.overlapping = network, dropout, overlapping
        self.masks = DropoutMasks(network.encoder, network.decoder, dropout)

    @functools.cached_property
    def _parts(self) -> tuple[nn.Module, nn.Module] | None:
        """The network up to where dropout begins, and from there on; None where torch.fx cannot follow it."""
        dropping = {module: _Drop(self.masks.drop, rate) for module, rate in self.masks.layers}
        parts = split_network(nn.Sequential(self.network.encoder, self.network.decoder), dropping)
        if parts is None:
            name = type(self.network.encoder).__name__
            echo(f"{name}: torch.fx cannot follow it, so that each pass computes more anew")
        return parts

    def __enter__(self) -> SubNetworks:
        if self._parts is None:
            self.masks.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.masks.__exit__(*how)

    def shared(self, window: Tensor) -> list[Tensor]:
        """What all passes have in common of a window (1, channel, *space): all that no dropout precedes.

        Of a network that torch.fx cannot follow: the encoder's maps, or the window itself.
        """
        if self._parts is None and self.dropout.encoder > 0:
            return [window]
        lone = (
            window.device.type == "cpu" and window.ndim == 5 and window[0, 0].numel() < SMALL_VOXELS
        )
        early = self.network.encoder if self._parts is None else self._parts[0]
        return [each[:1] for each in early(torch.cat([window, window]) if lone else window)]

    def logits(
        self, shared: Sequence[Tensor], passes: Sequence[int], size: Sequence[int]
    ) -> Tensor:
        """Logits (pass, class, *size) of these passes."""
        self.masks.begin(passes)
        many = [each.expand(len(passes), *each.shape[1:]) for each in shared]
        if self._parts is not None:
            return self.network.resize_logits(self._parts[1](*many), size)
        return self.network.decode(
            self.network.encoder(many[0]) if self.dropout.encoder > 0 else many, size
        )


def run_passes(
    networks: SubNetworks,
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    take: Callable[[int, ScanPart, Tensor], None],
    slice_axis: int | None = None,
) -> None:
    """Predict a scan by many sub-networks; the windows and their weights are those of `segment_scan`.

    As many passes as there is room for are swept over the scan at once, so that what they share is computed once for
    all of them.

    Args:
        networks: entered.
        image: (channel, *space).
        window: edges of the windows in voxels.
        overlap: share by which neighbours overlap.
        passes: numbers of the sub-networks.
        take: is given the number of a pass, a part of the scan, and the probabilities (class or region, *part) there;
            every voxel of every pass once.
        slice_axis: a 2D network's: each slice along this axis of the volume is a picture of its own.
    """
    if slice_axis is None:
        _sweep_all(networks, image, window, overlap, passes, take)
        return
    for place, picture in enumerate(image.unbind(1 + slice_axis)):

        def stack(number: int, where: ScanPart, probabilities: Tensor, place: int = place) -> None:
            whole = (*where[:slice_axis], slice(place, place + 1), *where[slice_axis:])
            take(number, whole, probabilities.unsqueeze(1 + slice_axis))

        _sweep_all(networks, picture, window, overlap, passes, stack)


def _sweep_all(
    networks: SubNetworks,
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    take: Callable[[int, ScanPart, Tensor], None],
) -> None:
    """All passes, as many at once as there is room for, over a volume or a picture."""
    padded, before = pad_to_window(image[None], window)
    size, inside = padded.shape[2:], image.shape[1:]
    rest = (slice(None),) * (len(size) - 1)

    def uncovered(number: int, first: int, probabilities: Tensor) -> None:
        """Leave out the planes, and the ends of the other axes, that the scan was extended by."""
        start, stop = (
            max(first, before[0]),
            min(first + probabilities.shape[1], before[0] + inside[0]),
        )
        if start >= stop:
            return
        kept = probabilities[:, start - first : stop - first]
        for axis in range(1, len(size)):
            kept = kept.narrow(1 + axis, before[axis], inside[axis])
        take(number, (slice(start - before[0], stop - before[0]), *rest), kept)

    together = PASSES_AT_ONCE[image.device.type]
    plane_bytes = 4 * networks.network.classes * window[0] * math.prod(size[1:])
    block = max(1, ROOM[image.device.type] // plane_bytes // together) * together
    for start in range(0, len(passes), block):
        _sweep(networks, padded, window, overlap, passes[start : start + block], uncovered)


def _sweep(
    networks: SubNetworks,
    padded: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    take: Callable[[int, int, Tensor], None],
) -> None:
    """One way through the scan, with the logits of all these passes in a slab as thick as a window that moves along."""
    size = padded.shape[2:]
    step = [
        w if w == n else max(1, int(w * (1 - overlap))) for w, n in zip(window, size, strict=True)
    ]
    weight = compute_importance_map(tuple(window), "gaussian", device=padded.device)
    slab = torch.zeros(
        len(passes), networks.network.classes, window[0], *size[1:], device=padded.device
    )
    weights = torch.zeros(window[0], *size[1:], device=padded.device)
    at = 0

    def finish(planes: int) -> None:
        """Hand out the slab's first planes, which no later window reaches, and move on by as many."""
        for number, logits in zip(passes, slab, strict=True):
            mean = logits[:, :planes] / weights[:planes]
            take(number, at, mean.sigmoid() if networks.overlapping else mean.softmax(0))
            _move(logits.movedim(1, 0), planes)
        _move(weights, planes)

    places = dense_patch_slices(size, tuple(window), step)
    for start, row in itertools.groupby(places, key=lambda place: int(place[0].start)):
        if start > at:
            finish(start - at)
            at = start
        for place in row:
            here = (slice(None), *place[1:])
            weights[here] += weight
            shared = networks.shared(padded[(slice(None), slice(None), *place)])
            for first in range(0, len(passes), PASSES_AT_ONCE[padded.device.type]):
                few = passes[first : first + PASSES_AT_ONCE[padded.device.type]]
                logits = _logits(networks, shared, few, window)
                slab[(slice(first, first + len(few)), slice(None), *here)] += logits.float().mul_(
                    weight
                )
    finish(window[0])


def _logits(
    networks: SubNetworks, shared: Sequence[Tensor], passes: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Logits (pass, class, *size) of a few passes; on a device whose memory they fill, in halves."""
    full = PASSES_AT_ONCE[shared[0].device.type]
    # always as many at a time on a CPU: the arithmetic of a lone pass differs in the last digit
    many = (
        [*passes, *[passes[-1]] * (full - len(passes))]
        if shared[0].device.type == "cpu"
        else passes
    )
    try:
        return networks.logits(shared, many, size)[: len(passes)]
    except torch.OutOfMemoryError:
        if len(passes) == 1:
            raise
    half = len(passes) // 2
    return torch.cat(
        [_logits(networks, shared, part, size) for part in (passes[:half], passes[half:])]
    )


def _move(planes: Tensor, by: int) -> None:
    """Move what lies behind the first `by` planes to the front, and clear the rest."""
    left = planes[by:].clone()
    planes[: len(left)] = left
    planes[len(left) :] = 0
