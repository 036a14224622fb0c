"""Uncertainty maps: where passes disagree, as a table of functions, and their picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfvox import plotting
from selfvox.uncertainty.accumulator import STEPS, VoteAccumulator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = (5, 25, 50, 75, 95)
# voxels per computation of percentiles: fewer cost calls, more leave the processor's cache
CHUNK = 2**16

RegionIndices = Sequence[Sequence[int]]  # for each region, the indices of its classes


class MapValues(NamedTuple):
    """A map on the prepared grid."""

    values: np.ndarray  # (*space) or (class or region, *space)
    is_probability: bool  # of the classes: outside the foreground box, the background is certain


@dataclass(frozen=True)
class UncertaintyMap:
    """A kind of map.

    Args:
        compute: maps (file, *space) or (file, class or region, *space), one for each file, from the
            sums over the passes and the regions to map next to the classes.
        files: endings of the files' names.
        layers: numbers per voxel in all its files, by the numbers of outputs and of regions.
        needs: names of the sums that an accumulator keeps for it.
        stores_passes: it is computed from the stored probabilities of every pass.
        is_probability: see `MapValues`.
    """

    compute: Callable[[VoteAccumulator, RegionIndices], np.ndarray]
    files: tuple[str, ...]
    layers: Callable[[int, int], int]
    needs: tuple[str, ...] = ()
    stores_passes: bool = False
    is_probability: bool = False


def entropy_map(accumulator: VoteAccumulator) -> np.ndarray:
    """(*space): entropy of the mean probability, in nats.

    Of a network trained on regions, the mean over the regions of each one with its complement.
    """
    entropy: np.ndarray = accumulator.labelling.entropy(accumulator.mean()).cpu().numpy()
    return entropy


def mutual_information_map(accumulator: VoteAccumulator) -> np.ndarray:
    """(*space), in nats: entropy of the mean less mean entropy of the passes (Gal et al. 2017).

    It is the uncertainty of the network, without that of the scan.
    """
    assert accumulator.entropies is not None
    total = accumulator.labelling.entropy(accumulator.mean())
    of_scan = accumulator.entropies / accumulator.passes
    # rounding may make it slightly negative
    information: np.ndarray = total.sub_(of_scan).clamp_(min=0).cpu().numpy()
    return information


def variance_map(accumulator: VoteAccumulator) -> np.ndarray:
    """(class or region, *space): variance of each probability over the passes."""
    assert accumulator.squares is not None
    mean_square = accumulator.squares / accumulator.passes
    variance = mean_square.sub_(accumulator.mean().square_())
    values: np.ndarray = variance.clamp_(min=0).cpu().numpy()
    return values


def percentile_maps(accumulator: VoteAccumulator, regions: RegionIndices = ()) -> np.ndarray:
    """Percentiles over the passes of the probability of each class, and of each region.

    A region's probability is the sum of its classes'.

    Args:
        accumulator: with the passes stored.
        regions: class indices of each region.

    Returns:
        (percentile, class or region, *space) float16.
    """
    groups = [[number] for number in range(len(accumulator.sums))]
    groups += [list(indices) for indices in regions]
    voxels = math.prod(accumulator.space)
    maps = np.empty((len(PERCENTILES), len(groups), voxels), np.float16)
    for place, indices in enumerate(groups):
        for start in range(0, voxels, CHUNK):
            stop = min(start + CHUNK, voxels)
            passes = [accumulator.stored_passes(index, start, stop) for index in indices]
            joint = passes[0]
            if len(passes) > 1:
                # each was rounded alone, so that the sum may exceed 1
                joint = np.minimum(np.sum(passes, 0), STEPS).astype(np.uint8)
            maps[:, place, start:stop] = percentiles(joint, PERCENTILES) / STEPS
    return maps.reshape(len(PERCENTILES), len(groups), *accumulator.space)


# The one list of maps. `settings.verbs` names them a second time, to check an option;
# a test compares the two.
MAPS = {
    "entropy": UncertaintyMap(
        compute=lambda accumulator, regions: entropy_map(accumulator)[None],
        files=("entropy",),
        layers=lambda outputs, regions: 1,
    ),
    "mutual-information": UncertaintyMap(
        compute=lambda accumulator, regions: mutual_information_map(accumulator)[None],
        files=("mutual-information",),
        layers=lambda outputs, regions: 1,
        needs=("entropies",),
    ),
    "variance": UncertaintyMap(
        compute=lambda accumulator, regions: variance_map(accumulator)[None],
        files=("variance",),
        layers=lambda outputs, regions: outputs,
        needs=("squares",),
    ),
    "percentiles": UncertaintyMap(
        compute=percentile_maps,
        files=tuple(f"percentile-{percentile:02}" for percentile in PERCENTILES),
        layers=lambda outputs, regions: len(PERCENTILES) * (outputs + regions),
        stores_passes=True,
        is_probability=True,
    ),
}


def map_files(names: Iterable[str]) -> list[str]:
    """Endings of the files that these maps are written to, percentiles last."""
    return [ending for name in _in_order(names) for ending in MAPS[name].files]


def count_layers(names: Iterable[str], outputs: int, regions: int) -> int:
    """How many numbers these maps have for each voxel.

    Args:
        names: of the maps.
        outputs: number of classes, or of regions that the network was trained on.
        regions: number of regions that are mapped next to classes.
    """
    return sum(MAPS[name].layers(outputs, regions) for name in _in_order(names))


def compute_maps(
    names: Iterable[str], accumulator: VoteAccumulator, regions: RegionIndices = ()
) -> dict[str, MapValues]:
    """Maps on the prepared grid, by the ending of their file."""
    maps: dict[str, MapValues] = {}
    for name in _in_order(names):
        kind = MAPS[name]
        arrays = kind.compute(accumulator, regions)
        for ending, values in zip(kind.files, arrays, strict=True):
            maps[ending] = MapValues(values, kind.is_probability)
    return maps


def _in_order(names: Iterable[str]) -> list[str]:
    """Each name once; percentiles, which have rows of their own in the picture, last."""
    return sorted(dict.fromkeys(names), key=lambda name: MAPS[name].is_probability)


# percentiles


def percentiles(passes: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Percentiles over the first axis, as `numpy.percentile` interpolates, but much faster.

    Args:
        passes: (pass, voxel) integers, such as probabilities in 255ths.
        percents: which percentiles, 0 to 100.

    Returns:
        (percentile, voxel) float32.
    """
    places = [percent / 100 * (len(passes) - 1) for percent in percents]
    ranks = {math.floor(place) for place in places} | {math.ceil(place) for place in places}
    steps = _comparators(len(passes), tuple(sorted(ranks)))
    values = np.empty((len(percents), passes.shape[1]), np.float32)
    for start in range(0, passes.shape[1], CHUNK):
        rows = _sort(list(passes[:, start : start + CHUNK].copy()), steps)
        for target, place in zip(values, places, strict=True):
            below = rows[math.floor(place)].astype(np.float32)
            above = rows[math.ceil(place)].astype(np.float32)
            target[start : start + CHUNK] = below + (above - below) * np.float32(place % 1)
    return values


def _sort(rows: list[np.ndarray], steps: Iterable[tuple[int, int, str]]) -> list[np.ndarray]:
    """Rows (voxel,) sorted voxel by voxel, in the ranks of the steps; changed in place."""
    spare = np.empty_like(rows[0])
    for low, high, keeps in steps:
        if keeps == "low":
            np.minimum(rows[low], rows[high], out=rows[low])
        elif keeps == "high":
            np.maximum(rows[low], rows[high], out=rows[high])
        else:
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            # the lower values take the place of their row, which becomes the next spare
            lower = spare
            spare = rows[low]
            rows[low] = lower
    return rows


@functools.lru_cache
def _comparators(count: int, ranks: tuple[int, ...]) -> list[tuple[int, int, str]]:
    """Batcher's odd-even merge sort of `count` values, as far as the ranks need it.

    Each step puts the lower of two values first; the third entry says which of them a later step
    needs.
    """
    needed = set(ranks)
    useful = []
    for low, high in reversed(_merge_sort_steps(count)):
        if low in needed and high in needed:
            keeps = "both"
        elif low in needed:
            keeps = "low"
        elif high in needed:
            keeps = "high"
        else:
            continue
        useful.append((low, high, keeps))
        needed |= {low, high}
    return useful[::-1]


def _merge_sort_steps(count: int) -> list[tuple[int, int]]:
    """All comparisons of Batcher's odd-even merge sort, as pairs of places."""
    steps = []
    merged = 1  # length of the runs that are sorted already
    while merged < count:
        distance = merged
        while distance >= 1:
            for start in range(distance % merged, count - distance, 2 * distance):
                for low in range(start, min(start + distance, count - distance)):
                    high = low + distance
                    # both in one pair of runs that is being merged
                    if low // (2 * merged) == high // (2 * merged):
                        steps.append((low, high))
            distance //= 2
        merged *= 2
    return steps


# the picture


@dataclass(frozen=True)
class MapPicture:
    """What the picture of a scan's uncertainty shows; all arrays are on the prepared grid."""

    image: np.ndarray  # (*space)
    labels: Mapping[
        str, np.ndarray
    ]  # class numbers (*space): `vote`, and `truth` where it is known
    parts: Sequence[
        tuple[str, Sequence[int]]
    ]  # names and class numbers, as percentiles are ordered
    overlays: Mapping[str, np.ndarray]  # maps (*space) by name
    percentiles: Sequence[np.ndarray] | None  # (class or region, *space) of each percentile
    spacing_mm: Sequence[float]


def draw_maps(out: Path, picture: MapPicture) -> None:
    """Draw the maps of a scan at its most informative slice; percentiles as in paper B Fig. 7."""
    shown_parts: list[int] = []
    if picture.percentiles is not None:
        # the background's row would show nothing that the others do not
        shown_parts = [index for index, (_, members) in enumerate(picture.parts) if any(members)]
    rows = 1 + len(shown_parts)
    columns = max(1 + len(picture.overlays), len(PERCENTILES))
    from matplotlib.figure import Figure  # only here: it takes half a second

    figure = Figure(figsize=(2.6 * columns, 0.4 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    level = plotting.informative_level(picture.labels["vote"])
    _draw_scan(grid[0][0], picture, level)
    for axes, (name, values) in zip(grid[0][1:], picture.overlays.items(), strict=False):
        _draw_overlay(axes, picture, name, values, level)
    for index, row in zip(shown_parts, grid[1:], strict=True):
        _draw_percentiles(row, picture, index, level)
    plotting.save_figure(figure, out, dpi=90)


def _draw_scan(axes: Axes, picture: MapPicture, level: int) -> None:
    """The scan with its labels outlined: the vote solid, the truth dashed."""
    _show_image(axes, picture, level)
    axes.set_title(f"scan, {' and '.join(picture.labels)}", fontsize=9)
    values = sorted({value for _, members in picture.parts for value in members})
    for label, linestyle in zip(picture.labels.values(), ("solid", "dashed"), strict=False):
        shown = plotting.axial_slice(label, level)
        plotting.outline(axes, shown, values, linestyle=linestyle)


def _draw_overlay(
    axes: Axes, picture: MapPicture, name: str, values: np.ndarray, level: int
) -> None:
    """A map in colour over the scan, the more opaque the larger its value."""
    _show_image(axes, picture, level)
    axes.set_title(name, fontsize=9)
    shown = plotting.axial_slice(values, level)
    # at most 0.9: the scan stays visible
    opacity = np.clip(shown / max(shown.max(), 1e-6), 0, 0.9)
    colours = axes.imshow(shown, cmap="inferno", vmin=0, alpha=opacity)
    axes.set_aspect(_aspect(picture))
    axes.figure.colorbar(colours, ax=axes, shrink=0.7)


def _draw_percentiles(row: Sequence[Axes], picture: MapPicture, index: int, level: int) -> None:
    """The percentiles of one class or region, with the outline of its truth or else its vote."""
    assert picture.percentiles is not None
    name, members = picture.parts[index]
    reference = "truth" if "truth" in picture.labels else "vote"
    label = plotting.axial_slice(picture.labels[reference], level)
    for axes, percentile, maps in zip(row, PERCENTILES, picture.percentiles, strict=False):
        shown = plotting.axial_slice(maps[index], level).astype(np.float32)
        colours = axes.imshow(shown, cmap="inferno", vmin=0, vmax=1)
        axes.set_aspect(_aspect(picture))
        plotting.outline(axes, np.isin(label, members), [1], colour=plotting.CLASS_COLOURS[1])
        axes.set_title(f"{name}: {percentile}th percentile", fontsize=9)
    axes.figure.colorbar(
        colours, ax=list(row), shrink=0.7, label=f"probability; outline: {reference}"
    )


def _show_image(axes: Axes, picture: MapPicture, level: int) -> None:
    low, high = np.percentile(picture.image, (1, 99))
    shown = plotting.axial_slice(picture.image, level)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=_aspect(picture))
    plotting.write_letters(axes, picture.image)


def _aspect(picture: MapPicture) -> float:
    """Height over width of a voxel as it is shown."""
    return picture.spacing_mm[1] / picture.spacing_mm[0]
