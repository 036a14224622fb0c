"""Parts of the figures of studies: panels, bands, intervals, legends, and the look of a method."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from selfvox.plotting import save_figure
from selfvox.studies.results import Result, labels_text

STYLE = Path(__file__).parent / "figures.mplstyle"
GREY = "0.35"
LEGEND_ROW = 0.2  # inches
LABEL_WIDTH = 46  # characters along the height of a panel
Rows = Sequence[Mapping[str, Any]]
Looks = Mapping[str, dict[str, Any]]  # by method: arguments of `Axes.plot`


def save_figures(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Save figures by name; those that are None have nothing to show."""
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(folder / f"{name}.png")
            save_figure(figure, paths[-1])
    return paths


def looks_of(results: Sequence[Result], equal: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """How each method is drawn: no two alike, as long as there are colours.

    Each has a colour, the same in 2D, where it is dashed; the from-scratch twin is grey. If there
    are several twins, the first is grey.

    Args:
        results: the runs.
        equal: names of the twins at equal compute, which are dotted.
    """
    methods = {result.method: result for result in results}
    of_results = {result.twin for result in results}
    twins = [name for name in methods if name in of_results and name not in equal]
    longer = [name for name in methods if name in equal]
    greys = {_name_in_3d(names[0]) for names in (twins, longer) if names}
    coloured = [name for name in dict.fromkeys(map(_name_in_3d, methods)) if name not in greys]
    cycle = itertools.cycle(entry["color"] for entry in mpl.rcParams["axes.prop_cycle"])
    colours = dict(zip(coloured, cycle, strict=False))
    looks: dict[str, dict[str, Any]] = {}
    for name, result in methods.items():
        is_2d = bool(result.slices)
        linestyle = "--" if is_2d else "-"
        markers = "o^"
        if name in equal:
            linestyle = ":"
            markers = "PX"
        elif name in twins:
            markers = "sD"
        looks[name] = {
            "color": colours.get(_name_in_3d(name), GREY),
            "linestyle": linestyle,
            "marker": markers[is_2d],
            "label": _label(name, results),
        }
    return looks


def _name_in_3d(name: str) -> str:
    return name.removeprefix("2D-")


def _label(name: str, results: Sequence[Result]) -> str:
    """A method with its number of runs at each number of labels: `rotation, n = 6 to 10`."""
    runs = [result for result in results if result.method == name]
    counts = Counter(result.labels for result in runs).values()
    number = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    transductive = " (transductive)" if any(result.transductive for result in runs) else ""
    return f"{name}{transductive}, n = {number}"


def make_panels(count: int, score: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most three in a row; `score` labels the vertical axes."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)  # rounded up
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.4 * rows + 0.7))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count:columns]:
        # a longer line than a panel is high would be cut off
        axes.set_ylabel(textwrap.fill(score, LABEL_WIDTH))
    return figure, list(grid[:count])


def draw_band(
    axes: Axes,
    x: Sequence[float],
    means: Sequence[float],
    sds: Sequence[float],
    look: Mapping[str, Any],
) -> None:
    """Draw a curve of means, and a band of one standard deviation to each side."""
    mean = np.array(means)
    sd = np.array(sds)
    axes.plot(x, mean, **look)
    axes.fill_between(x, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)


def draw_intervals(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    rows: Rows,
    look: Mapping[str, Any],
    label: str | None = None,
) -> None:
    """Draw the differences of rows, with their intervals from `low` to `high`.

    The simultaneous interval, where rows have one, is drawn thin behind it. Above each point is the
    number of twins that it is compared with, where rows have it.
    """
    differences = _column(rows, "difference")
    axes.errorbar(
        x,
        differences,
        _reach(rows, differences, "low", "high"),
        fmt=look["marker"],
        color=look["color"],
        label=label,
        capsize=3,
    )
    simultaneous = _reach(rows, differences, "low_simultaneous", "high_simultaneous")
    axes.errorbar(x, differences, simultaneous, fmt="none", ecolor=look["color"], elinewidth=0.7)
    for place, row, difference in zip(x, rows, differences, strict=True):
        if row.get("twins"):
            axes.annotate(
                f"{row['twins']}",
                (place, difference),
                xytext=(2, 2),
                textcoords="offset points",
                fontsize="xx-small",
            )


def _column(rows: Rows, name: str) -> np.ndarray:
    """A column of rows; nan where a row has no value."""
    return np.array([row.get(name) for row in rows], dtype=float)


def _reach(rows: Rows, differences: np.ndarray, low: str, high: str) -> np.ndarray:
    """How far intervals reach below and above the differences: (2, row), nan without one."""
    reach = np.array([differences - _column(rows, low), _column(rows, high) - differences])
    reached: np.ndarray = np.maximum(reach, 0)  # rounding may put an end on the wrong side
    return reached


def label_shares(axes: Axes, rows: Rows) -> None:
    """Label the horizontal axis by shares of the labels, each with the number of labels.

    The axis is logarithmic: methods differ most where labels are few.
    """
    axes.set_xlabel("share of the labels; number that trains + that validates")
    axes.set_xscale("log")
    counts = dict(sorted((float(row["fraction"]), labels_of(row)) for row in rows))
    ticks = [f"{_percent(share)}\n{count}" for share, count in counts.items()]
    axes.set_xticks(list(counts), ticks, fontsize="small")
    axes.xaxis.set_minor_locator(NullLocator())


def use_log_axis(axes: Axes) -> None:
    """Make the horizontal axis of what is drawn logarithmic, with plain numbers, such as 20."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # in less than a decade, 1, 2 and 5 leave one number or two
    steps = (1, 2, 5) if high > 10 * low else tuple(range(1, 10))
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def labels_of(row: Mapping[str, Any]) -> str:
    """Numbers of labels of a row: those that train, and those that choose the weights."""
    return labels_text(int(row["labels"]), row.get("validation_labels"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def draw_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Draw one legend for all panels below them, in as many columns as fit into the figure."""
    handles, labels = panels[0].get_legend_handles_labels()
    # the width of a legend is known once it is drawn
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for columns in range(min(4, max(1, len(labels))), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()
    rows = -(-len(labels) // columns)  # rounded up
    # the figure has room for two rows
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))
