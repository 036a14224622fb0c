"""Figures of what Monte-Carlo dropout changes: those of paper B (Fig. 3 to 7), and calibration."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfvox.runs.atomic_files import atomic_write
from selfvox.studies.figure_parts import (
    GREY,
    STYLE,
    Looks,
    Rows,
    draw_intervals,
    draw_legend,
    label_shares,
    looks_of,
    make_panels,
    save_figures,
)
from selfvox.studies.mc_dropout_variants import (
    ENCODER,
    MAPS,
    PLACES,
    RATES,
    VOTES,
    WITHOUT,
    Variant,
)
from selfvox.studies.plan import folder_name
from selfvox.studies.results import Result

HOLLOW: dict[str, Any] = {"linestyle": ":", "markerfacecolor": "white"}
TITLES = {"ece": "ECE", "brier": "Brier"}


def draw(predicted: Sequence[Result], rows: Rows, folder: Path) -> list[Path]:
    """Draw all figures.

    Args:
        predicted: the runs.
        rows: of `dropout.csv`, of the overall mean, each with its `variant`.
        folder: where the pictures are written.
    """
    with mpl.style.context(STYLE):
        looks = looks_of(predicted)
        pictures = save_figures(
            {
                "dropout": _score_before_after(rows, looks),
                "dropout-places": _by_variant(rows, PLACES, "dropout of 0.3, where"),
                "dropout-rates": _by_variant(rows, RATES, "rate in the encoder"),
                "dropout-votes": _by_variant(rows, VOTES, "vote"),
                "dropout-calibration": _calibration_before_after(rows, looks),
            },
            folder,
        )
    return pictures + _copy_maps(predicted, folder)


def select_for_maps(results: Sequence[Result]) -> list[Result]:
    """The run of each method that maps are drawn of: with most labels, of the first seeds."""
    selected: dict[str, Result] = {}
    for result in results:
        best = selected.setdefault(result.method, result)
        if result.labels > best.labels:
            selected[result.method] = result
    return list(selected.values())


def _copy_maps(predicted: Sequence[Result], folder: Path) -> list[Path]:
    """Copy the picture of percentiles of one scan per method."""
    copies = []
    for result in select_for_maps(predicted):
        pictures = sorted((result.paths[0] / MAPS.folder).glob("*_maps.png"))
        if pictures:
            copy = folder / f"percentiles-{folder_name(result.method)}.png"
            with atomic_write(copy) as temporary:
                shutil.copyfile(pictures[0], temporary)
            copies.append(copy)
    return copies


def _score_before_after(rows: Rows, looks: Looks) -> Figure:
    """Score of each method without and with dropout; and the difference with its interval."""
    figure, (scores, differences) = make_panels(2, "Dice")
    _draw_before_after(scores, rows, looks, "mean")
    scores.set_title(rows[0]["name"])
    differences.axhline(0, color="black", linewidth=1)
    for number, (method, look) in enumerate(looks.items()):
        shown = _select(rows, method, ENCODER, "difference")
        # a little apart, so that intervals do not cover each other; the axis is logarithmic
        places = np.array([row["fraction"] for row in shown]) * 1.03**number
        draw_intervals(differences, places, shown, look)
    differences.set_title("with minus without, 95 %")
    label_shares(differences, rows)
    draw_legend(figure, [scores, differences])
    return figure


def _calibration_before_after(rows: Rows, looks: Looks) -> Figure:
    """Calibration errors of each method without and with dropout."""
    figure, panels = make_panels(len(TITLES), "Mean over the scans")
    for axes, (column, title) in zip(panels, TITLES.items(), strict=True):
        _draw_before_after(axes, rows, looks, column)
        axes.set_title(title)
    draw_legend(figure, panels)
    return figure


def _draw_before_after(axes: Axes, rows: Rows, looks: Looks, column: str) -> None:
    for method, look in looks.items():
        for variant, style, word in (
            (WITHOUT, HOLLOW, "without"),
            (ENCODER, {"linestyle": "-"}, "with"),
        ):
            label = f"{look['label']}, {word} dropout"
            _draw_curve(
                axes,
                _select(rows, method, variant, column),
                column,
                {**look, **style, "label": label},
            )
    label_shares(axes, rows)


def _by_variant(rows: Rows, variants: Mapping[str, Variant], title: str) -> Figure | None:
    """Score by labels in each variant, one panel per pre-trained method."""
    # runs from scratch are predicted without dropout and with that of paper B alone
    shown_variants = set(variants.values()) - {WITHOUT, ENCODER}
    methods = list(dict.fromkeys(row["method"] for row in rows if row["variant"] in shown_variants))
    if not methods:
        return None
    figure, panels = make_panels(len(methods), f"Dice, {rows[0]['name']}")
    for axes, method in zip(panels, methods, strict=True):
        for name, variant in variants.items():
            style = {"color": GREY, **HOLLOW} if variant == WITHOUT else {}
            shown = _select(rows, method, variant, "mean")
            _draw_curve(axes, shown, "mean", {"marker": "o", "label": name, **style})
        axes.set_title(f"{method}: {title}")
        label_shares(axes, rows)
    draw_legend(figure, panels)
    return figure


def _draw_curve(axes: Axes, rows: Rows, column: str, look: Mapping[str, Any]) -> None:
    fractions = [row["fraction"] for row in rows]
    axes.plot(fractions, [row[column] for row in rows], **look)


def _select(rows: Rows, method: str, variant: Variant, column: str) -> list[Mapping[str, Any]]:
    """The rows of a method and variant that have a value in the column, by share of the labels."""
    selected = [
        row
        for row in rows
        if row["method"] == method and row["variant"] == variant and row[column] is not None
    ]
    return sorted(selected, key=lambda row: float(row["fraction"]))
