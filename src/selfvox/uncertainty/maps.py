"""Maps of what passes disagree about: percentiles, entropy, mutual information, variance; as files and as a picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from selfvox.runs.atomic_files import atomic_write
from selfvox.uncertainty.accumulator import VoteAccumulator

PERCENTILES = (5, 25, 50, 75, 95)
CHUNK = (
    2**16
)  # voxels whose percentiles are taken at once: fewer cost calls, more leave the processor's cache
SHARES = (
    255  # a pass's probabilities are kept in this many steps: percentiles are off by 1/510 at most
)
COLOURS = ("#ff9f1c", "#2ec4b6", "#e71d36", "#7b2cbf", "#3a86ff")


def percentiles(passes: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Percentiles over the first axis, with linear interpolation: those of `numpy.percentile`, many times as fast.

    Args:
        passes: (pass, voxel) integers, such as probabilities in 255ths.
        wanted: percentiles, 0 to 100.

    Returns:
        (percentile, voxel) float32.
    """
    places = [each / 100 * (len(passes) - 1) for each in wanted]
    ranks = tuple(
        sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    )
    found = np.empty((len(wanted), passes.shape[1]), np.float32)
    for start in range(0, passes.shape[1], CHUNK):
        rows = list(passes[:, start : start + CHUNK].copy())
        spare = np.empty_like(rows[0])
        for low, high, keeps in _comparators(len(rows), ranks):
            if keeps == "both":
                np.minimum(rows[low], rows[high], out=spare)
                np.maximum(rows[low], rows[high], out=rows[high])
                rows[low], spare = spare, rows[low]
            else:
                pick, row = (np.minimum, low) if keeps == "low" else (np.maximum, high)
                pick(rows[low], rows[high], out=rows[row])
        for target, place in zip(found, places, strict=True):
            below, above = (
                rows[rank].astype(np.float32) for rank in (math.floor(place), math.ceil(place))
            )
            target[start : start + CHUNK] = below + (above - below) * np.float32(place % 1)
    return found


@functools.lru_cache
def _comparators(count: int, ranks: tuple[int, ...]) -> list[tuple[int, int, str]]:
    """Batcher's odd-even merge sort of `count` values, without what the wanted ranks do not need.

    Each step puts the lower of two values first; the third entry says which of them is needed later.
    """
    steps = []
    merged = 1
    while merged < count:
        apart = merged
        while apart >= 1:
            for start in range(apart % merged, count - apart, 2 * apart):
                steps += [
                    (one, one + apart)
                    for one in range(start, min(start + apart, count - apart))
                    if one // (2 * merged) == (one + apart) // (2 * merged)
                ]
            apart //= 2
        merged *= 2
    needed, kept = set(ranks), []
    for low, high in reversed(steps):
        keeps = [name for name, row in (("low", low), ("high", high)) if row in needed]
        if keeps:
            kept.append((low, high, keeps[0] if len(keeps) == 1 else "both"))
            needed |= {low, high}
    return kept[::-1]


def map_names(asked: Sequence[str]) -> list[str]:
    """The names of the files that these maps become: one for each percentile."""
    found = [name for name in dict.fromkeys(asked) if name != "percentiles"]
    return found + (
        [f"percentile-{each:02}" for each in PERCENTILES] if "percentiles" in asked else []
    )


def scalar_map(name: str, tally: VoteAccumulator) -> Tensor:
    """One map of what the passes disagree about, (*space), or (class, *space) of `variance`.

    Entropy: of the mean probability, in nats; where the network was trained on regions, the mean over these of each
    beside its complement. Mutual information: that less the passes' mean entropy, which is what is unsure about the
    network rather than about the scan (Gal et al. 2017). Variance: of each class's probability.
    """
    mean = tally.sums / tally.passes
    if name == "variance":
        assert tally.squares is not None
        return (tally.squares / tally.passes).sub_(mean.square_()).clamp_(min=0)
    found = tally.entropy(mean)
    if name == "mutual-information":
        assert tally.entropies is not None
        found = found.sub_(tally.entropies / tally.passes).clamp_(min=0)
    return found


def percentile_maps(tally: VoteAccumulator, regions: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Percentiles over the passes of each class's probability, and then of each region's, which is its classes' sum.

    Args:
        tally: with the passes spilled.
        regions: class indices of each region.

    Returns:
        (percentile, class or region, *space) float16.
    """
    parts, voxels = (
        [*([number] for number in range(len(tally.sums))), *regions],
        math.prod(tally.space),
    )
    found = np.empty((len(PERCENTILES), len(parts), voxels), np.float16)
    for place, numbers in enumerate(parts):
        for start in range(0, voxels, CHUNK):
            stop = min(start + CHUNK, voxels)
            passes = [tally.spilled(number, start, stop) for number in numbers]
            # rounded one by one, they may add up to more than all
            joint = (
                passes[0]
                if len(passes) == 1
                else np.minimum(np.sum(passes, 0), SHARES).astype(np.uint8)
            )
            found[:, place, start:stop] = percentiles(joint, PERCENTILES) / SHARES
    return found.reshape(len(PERCENTILES), len(parts), *tally.space)


# the picture


def draw_maps(
    out: Path,
    image: np.ndarray,
    labels: Mapping[str, np.ndarray],
    parts: Sequence[tuple[str, Sequence[int]]],
    unsure: Mapping[str, np.ndarray],
    heat: np.ndarray | None,
    spacing_mm: Sequence[float],
) -> None:
    """Draw a scan's uncertainty at the slice that tells most: maps over the scan, percentiles as in paper B Fig. 7.

    Args:
        out: the picture, .png.
        image: (*space).
        labels: label values (*space) to outline: `vote`, and `truth` where it is known.
        parts: names and label values of the classes and regions of which `heat` has percentiles.
        unsure: maps (*space) by name.
        heat: (percentile, class or region, *space), or None.
        spacing_mm: edges of a voxel.
    """
    values = sorted({value for _, members in parts for value in members} - {0})
    # the background's would show nothing that the others do not
    warm = (
        [number for number, (_, members) in enumerate(parts) if any(members)]
        if heat is not None
        else []
    )
    rows, columns = 1 + len(warm), max(1 + len(unsure), len(PERCENTILES))
    figure = Figure(figsize=(2.6 * columns, 0.4 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    level = _telling_level(labels["vote"])
    look = functools.partial(_slice, level=level)
    aspect = spacing_mm[1] / spacing_mm[0]
    low, high = np.percentile(image, (1, 99))
    for axes, name in zip(grid[0], ["scan", *unsure], strict=False):
        axes.imshow(look(image), cmap="gray", vmin=low, vmax=high, aspect=aspect)
        axes.set_title(name if name != "scan" else f"scan, {' and '.join(labels)}", fontsize=9)
        if name == "scan":
            for values_of, style in zip(labels.values(), ("solid", "dashed"), strict=False):
                _outline(axes, look(values_of), values, style)
        else:
            shown = look(unsure[name])
            over = axes.imshow(
                shown, cmap="inferno", vmin=0, alpha=np.clip(shown / max(shown.max(), 1e-6), 0, 0.9)
            )
            axes.set_aspect(aspect)
            figure.colorbar(over, ax=axes, shrink=0.7)
    reference = "truth" if "truth" in labels else "vote"
    for number, row in zip(warm, grid[1:], strict=True):
        name, members = parts[number]
        for axes, percentile, maps in zip(
            row, PERCENTILES, heat if heat is not None else (), strict=False
        ):
            warmth = axes.imshow(
                look(maps[number]).astype(np.float32), cmap="inferno", vmin=0, vmax=1
            )
            axes.set_aspect(aspect)
            _outline(axes, np.isin(look(labels[reference]), members), [1], "solid", "#2ec4b6")
            axes.set_title(f"{name}: {percentile}th percentile", fontsize=9)
        figure.colorbar(
            warmth, ax=list(row), shrink=0.7, label=f"probability; outline: {reference}"
        )
    out.parent.mkdir(exist_ok=True)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})


def _slice(array: np.ndarray, level: int) -> np.ndarray:
    """The axial slice of a volume, anterior up; a picture as it is."""
    return array if array.ndim == 2 else array[:, :, level].T[::-1]


def _telling_level(label: np.ndarray) -> int:
    """The axial slice with most voxels above 0; the middle where there are none."""
    if label.ndim == 2:
        return 0
    sizes = (label > 0).sum((0, 1))
    return int(sizes.argmax()) if sizes.any() else label.shape[2] // 2


def _outline(
    axes: Axes, label: np.ndarray, values: Sequence[int], style: str, colour: str | None = None
) -> None:
    for number, value in enumerate(values):
        if (label == value).any():
            axes.contour(
                label == value,
                levels=[0.5],
                colors=[colour or COLOURS[number % len(COLOURS)]],
                linestyles=style,
                linewidths=1.1,
            )
