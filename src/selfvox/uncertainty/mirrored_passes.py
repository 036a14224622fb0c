"""Passes over a scan and its mirror images: passes take turns, so that they cost no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from selfvox.models.classifier import Classifier
from selfvox.models.regressor import Regressor
from selfvox.models.sliding_window import WindowCounter
from selfvox.ops.flips import flip, flips
from selfvox.uncertainty.accumulator import ScanPart
from selfvox.uncertainty.class_passes import run_class_passes
from selfvox.uncertainty.mc_dropout import DropoutMasks
from selfvox.uncertainty.passes import PassReceiver, SubNetworks, run_passes


def turns(
    passes: Sequence[int], axes: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The axes that are mirrored, and the passes that see the scan so: pass t takes set t mod n."""
    sets = flips(axes)
    for turn, chosen in enumerate(sets):
        numbers = [number for number in passes if number % len(sets) == turn]
        if numbers:
            yield chosen, numbers


def run_mirrored_passes(
    networks: SubNetworks,
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    passes: Sequence[int],
    receive: PassReceiver,
    slice_axis: int | None,
    axes: Sequence[int],
    count_windows: WindowCounter | None = None,
) -> None:
    """As `run_passes`, each pass over one of the mirror images, mirrored back.

    Args:
        networks: entered.
        image: (channel, *space).
        window: edges of the windows in voxels.
        overlap: share by which neighbours overlap.
        passes: numbers of the sub-networks.
        receive: as of `run_passes`, of the scan as it is.
        slice_axis: of a 2D network.
        axes: of space, that are mirrored; none: the scan as it is.
        count_windows: as of `run_passes`.
    """
    for chosen, numbers in turns(passes, axes):

        def receive_mirrored(
            number: int,
            part: ScanPart,
            probabilities: Tensor,
            chosen: tuple[int, ...] = chosen,
        ) -> None:
            place = mirrored_part(part, chosen, image.shape[1:])
            receive(number, place, flip(probabilities, chosen))

        run_passes(
            networks,
            flip(image, chosen),
            window,
            overlap,
            numbers,
            receive_mirrored,
            slice_axis,
            count_windows,
        )


def mirrored_part(part: ScanPart, axes: Sequence[int], space: Sequence[int]) -> ScanPart:
    """Where a part of a mirrored scan is in the scan itself."""
    places = list(part)
    for axis in axes:
        # axes beyond those of the part are complete
        if axis < len(places):
            start, stop, _ = places[axis].indices(space[axis])
            places[axis] = slice(space[axis] - stop, space[axis] - start)
    return tuple(places)


def run_mirrored_class_passes(
    network: Classifier | Regressor,
    masks: DropoutMasks,
    image: Tensor,
    passes: Sequence[int],
    axes: Sequence[int],
) -> Tensor:
    """As `run_class_passes`, each pass over one of the mirror images: (pass, class)."""
    rows: dict[int, Tensor] = {}
    for chosen, numbers in turns(passes, axes):
        mirrored = flip(image[0], chosen)[None]
        probabilities = run_class_passes(network, masks, mirrored, numbers)
        rows |= dict(zip(numbers, probabilities, strict=True))
    return torch.stack([rows[number] for number in passes])
