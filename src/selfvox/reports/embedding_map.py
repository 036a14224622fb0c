"""A map of embeddings: scans as points, alike ones near each other, coloured by a property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfvox.data.naming import natural_key, printable
from selfvox.data.properties import is_number
from selfvox.plotting import class_colour, save_figure

_MISSING = "#bbbbbb"


def draw_map(
    points: np.ndarray,
    shares: np.ndarray,
    properties: Mapping[str, Sequence[str]],
    out: Path,
) -> None:
    """Draw the map, once for each property.

    Args:
        points: (scan, 2).
        shares: (2,) of the variance that each axis shows.
        properties: values of each scan, by name; an empty text where it is not known.
        out: the picture, .png.
    """
    panels = list(properties.items()) or [("", [""] * len(points))]
    figure = Figure(figsize=(5 * len(panels), 4.4), layout="constrained")
    for axes, (name, values) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _draw_panel(axes, points, name, values)
        for label, share in zip((axes.set_xlabel, axes.set_ylabel), shares, strict=True):
            label(f"{share:.0%} of the variance")
    save_figure(figure, out, 110)


def _draw_panel(axes: Axes, points: np.ndarray, name: str, values: Sequence[str]) -> None:
    axes.set_title(printable(name) or "scans")
    of_scans = np.array(values)
    present = sorted(set(values) - {""}, key=natural_key)
    x, y = points[of_scans == ""].T
    axes.scatter(x, y, s=18, color=_MISSING if name else class_colour(5))
    if is_number(present):
        x, y = points[of_scans != ""].T
        numbers = of_scans[of_scans != ""].astype(float)
        dots = axes.scatter(x, y, s=18, c=numbers, cmap="viridis")
        axes.figure.colorbar(dots, ax=axes)
        return
    for number, value in enumerate(present, start=1):
        x, y = points[of_scans == value].T
        axes.scatter(x, y, s=18, color=class_colour(number), label=printable(value))
    if present:
        axes.legend(loc="upper right", fontsize=8)
