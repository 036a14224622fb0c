"""Pictures: previews of a pretext task, learning curves side by side, scans with truth and prediction outlined."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfvox.pretext import Panel
from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.run_folder import read_metrics

CLASS_COLOURS = ("#ff9f1c", "#2ec4b6", "#e71d36", "#7b2cbf", "#3a86ff")


class Outlined(NamedTuple):
    """A scan and the masks to outline on it, all on one grid."""

    caption: str
    image: np.ndarray  # (*space)
    masks: Mapping[str, np.ndarray]  # (*space) integers, by name such as `truth`


def draw_preview(
    rows: Sequence[Sequence[Panel]], title: str, out: Path, slices: bool = False
) -> None:
    """Draw what a network is asked: one row per scan, each panel under its caption; of `slices`, upright ones."""
    columns = max(len(row) for row in rows)
    wide = 3 if rows[0][0].image.ndim == 4 else 1  # a volume shows three slices
    figure = Figure(
        figsize=(1.0 + 1.9 * wide * columns, 0.6 + 2.2 * len(rows)), layout="constrained"
    )
    figure.suptitle(textwrap.fill(title, int(12 * figure.get_figwidth())), fontsize=10)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, panel in zip(axes_row, row, strict=False):
            axes.imshow(montage(panel.image.float().cpu().numpy(), slices), cmap="gray")
            axes.set_title(panel.caption, fontsize=8)
    _save(figure, out)


def draw_curves(runs: Mapping[str, Path], metric: str, out: Path) -> None:
    """Draw one metric of several runs over their steps, such as the validation Dice of two twins."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        points = [(line["step"], line[metric]) for line in read_metrics(run) if metric in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel("fine-tuning step")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    _save(figure, out)


def draw_outlines(cases: Sequence[Outlined], classes: Mapping[int, str], out: Path) -> None:
    """Draw scans with masks outlined, at the slice that tells most: one row per scan, one column per mask."""
    columns = max(len(case.masks) for case in cases)
    figure = Figure(figsize=(0.3 + 3.2 * columns, 0.5 + 3.2 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for axes_row, case in zip(grid, cases, strict=True):
        level = _telling_level(next(iter(case.masks.values())))
        for axes in axes_row:
            axes.set_axis_off()
        for axes, (name, mask) in zip(axes_row, case.masks.items(), strict=False):
            axes.imshow(_shown_slice(case.image, level), cmap="gray")
            _outline(axes, _shown_slice(mask, level), classes)
            axes.set_title(f"{case.caption}: {name}", fontsize=9)
    handles = [
        Axes.plot(
            grid[0][0], [], [], color=CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)], label=name
        )[0]
        for value, name in classes.items()
        if value
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 1 + columns),
        fontsize=9,
    )
    _save(figure, out)


def montage(image: np.ndarray, is_slice: bool = False) -> np.ndarray:
    """A picture of an image (channel, *space): itself in 2D; the three middle slices side by side in 3D.

    Three channels of a picture are shown as colours, else the first channel; scaled to its own 1st to 99th percentile.
    A 2D image that `is_slice` of a volume is no picture, and lies as its axes do.
    """
    if is_slice or image.ndim == 4 or len(image) != 3:
        image = image[:1]
    low, high = np.percentile(image, (1, 99))
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if image.ndim == 3:
        shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        return _upright(shown) if is_slice else shown
    volume = image[0]
    x, y, z = (size // 2 for size in volume.shape)
    slices = [_upright(volume[:, :, z]), _upright(volume[:, y, :]), _upright(volume[x, :, :])]
    tallest = max(len(each) for each in slices)
    padded = [
        np.pad(each, ((0, tallest - len(each)), (0, 2)), constant_values=1) for each in slices
    ]
    return np.concatenate(padded, axis=1)


def _upright(plane: np.ndarray) -> np.ndarray:
    """A slice (right or anterior, anterior or superior) as people look at it: up is up."""
    return plane.T[::-1]


def _shown_slice(array: np.ndarray, level: int) -> np.ndarray:
    """The axial slice of a volume, upright; a picture as it is."""
    return array if array.ndim == 2 else _upright(array[:, :, level])


def _telling_level(mask: np.ndarray) -> int:
    """The axial slice with most voxels of the highest class, which is the lesion or tumour; 0 for a picture."""
    return 0 if mask.ndim == 2 else int((mask == mask.max()).sum((0, 1)).argmax())


def _outline(axes: Axes, mask: np.ndarray, classes: Mapping[int, str]) -> None:
    for value in classes:
        if value and (mask == value).any():
            colour = CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
            axes.contour(mask == value, levels=[0.5], colors=[colour], linewidths=1.2)


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
