"""Pictures of scans and runs: previews of a pretext task, learning curves, outlined masks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from selfvox.plotting import (
    axial_slice,
    class_colour,
    informative_level,
    outline,
    save_figure,
    upright,
    write_letters,
)
from selfvox.pretext import Panel
from selfvox.runs.run_folder import read_metrics

DPI = 110


class OutlinedScan(NamedTuple):
    """A scan and the masks to outline on it, all on one grid."""

    caption: str
    image: np.ndarray  # (*space)
    masks: Mapping[str, np.ndarray]  # (*space) integers, by name such as `truth`


def draw_preview(
    rows: Sequence[Sequence[Panel]], title: str, out: Path, slices: bool = False
) -> None:
    """Draw the panels of a pretext task: one row per scan, a caption above each panel.

    Args:
        rows: panels of each scan.
        title: of the whole picture; wrapped to its width.
        out: the picture, .png.
        slices: the 2D panels are slices of volumes, which are turned upright.
    """
    columns = max(len(row) for row in rows)
    slices_shown = 3 if rows[0][0].image.ndim == 4 else 1
    figure = Figure(
        figsize=(1.0 + 1.9 * slices_shown * columns, 0.6 + 2.2 * len(rows)), layout="constrained"
    )
    figure.suptitle(textwrap.fill(title, int(12 * figure.get_figwidth())), fontsize=10)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, panel in zip(axes_row, row, strict=False):
            axes.imshow(montage(panel.image.float().cpu().numpy(), slices), cmap="gray")
            axes.set_title(panel.caption, fontsize=8)
    save_figure(figure, out, DPI)


def draw_curves(runs: Mapping[str, Path], metric: str, out: Path) -> None:
    """Draw one metric of several runs over their steps.

    Args:
        runs: run folders by the name to show.
        metric: a key of `metrics.jsonl`, between 0 and 1, such as `dice_mean`.
        out: the picture, .png.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        lines = [line for line in read_metrics(run) if metric in line]
        if lines:
            steps = [line["step"] for line in lines]
            axes.plot(steps, [line[metric] for line in lines], marker="o", label=name)
    axes.set_xlabel("fine-tuning step")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    save_figure(figure, out, DPI)


def draw_outlines(cases: Sequence[OutlinedScan], classes: Mapping[int, str], out: Path) -> None:
    """Draw scans with masks outlined: one row per scan, one column per mask.

    Args:
        cases: each is shown at the level that is informative for its first mask.
        classes: names by label value, for the legend.
        out: the picture, .png.
    """
    columns = max(len(case.masks) for case in cases)
    figure = Figure(figsize=(0.3 + 3.2 * columns, 0.5 + 3.2 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), columns, squeeze=False)
    for axes_row, case in zip(grid, cases, strict=True):
        level = informative_level(next(iter(case.masks.values())))
        for axes in axes_row:
            axes.set_axis_off()
        for axes, (name, mask) in zip(axes_row, case.masks.items(), strict=False):
            axes.imshow(axial_slice(case.image, level), cmap="gray")
            outline(axes, axial_slice(mask, level), classes)
            write_letters(axes, case.image)
            axes.set_title(f"{case.caption}: {name}", fontsize=9)
    handles = [
        Line2D([], [], color=class_colour(value), label=name)
        for value, name in classes.items()
        if value
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 1 + columns),
        fontsize=9,
    )
    save_figure(figure, out, DPI)


def montage(image: np.ndarray, is_slice: bool = False) -> np.ndarray:
    """Arrange an image for display: a 2D image as it is, a volume as its three middle slices.

    Grey values are scaled from the 1st to the 99th percentile.

    Args:
        image: (channel, *space). Three channels of a picture are colours; otherwise the first
            channel is shown.
        is_slice: the 2D image is a slice of a volume, so it is turned upright.

    Returns:
        (row, column) or (row, column, colour), 0 to 1.
    """
    is_picture = image.ndim == 3 and not is_slice
    if not (is_picture and len(image) == 3):
        image = image[:1]
    # percentiles: a few bright voxels would leave the rest black
    low, high = np.percentile(image, (1, 99))
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    if is_picture:
        return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    if is_slice:
        return upright(image[0])
    volume = image[0]
    x, y, z = (size // 2 for size in volume.shape)
    slices = [upright(volume[:, :, z]), upright(volume[:, y, :]), upright(volume[x, :, :])]
    height = max(len(plane) for plane in slices)
    padded = [
        # white, and a gap of two columns between the slices
        np.pad(plane, ((0, height - len(plane)), (0, 2)), constant_values=1)
        for plane in slices
    ]
    return np.concatenate(padded, axis=1)
