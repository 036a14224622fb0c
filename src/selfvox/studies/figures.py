"""The figures of a study: score by labels and by steps, and differences to the twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfvox.studies.compute import total_seconds
from selfvox.studies.convergence import VALIDATION_METRICS, curve
from selfvox.studies.figure_parts import (
    GREY,
    STYLE,
    Looks,
    Rows,
    draw_band,
    draw_intervals,
    draw_legend,
    label_shares,
    labels_of,
    looks_of,
    make_panels,
    save_figures,
    use_log_axis,
)
from selfvox.studies.plan import Plan
from selfvox.studies.reference import StatedScore, stated_scores
from selfvox.studies.results import EQUAL_COMPUTE, Result, labels_text


def draw(
    plan: Plan,
    results: Sequence[Result],
    summary: Rows,
    comparisons: Mapping[str, Rows],
    folder: Path,
) -> list[Path]:
    """Draw all figures of the runs that are done.

    Args:
        plan: names the paper to draw next to the runs.
        results: the runs.
        summary: rows of `summary.csv`.
        comparisons: rows of `comparisons.csv`, by kind of comparison.
        folder: where the pictures are written.

    Returns:
        The pictures.
    """
    overall = results[0].overall
    names = [*results[0].averaged(), overall]
    rows = [row for row in summary if row["name"] in names]
    with mpl.style.context(STYLE):
        looks = looks_of(results, {row["twin"] for row in comparisons[EQUAL_COMPUTE]})
        figures = {
            "labels": _by_labels(plan, rows, looks),
            "methods": _by_method([row for row in rows if row["name"] == overall], looks),
            "steps": _by_steps(results, looks),
            "differences": _differences(rows, looks, "minus its twin's"),
            "compute": _by_compute([row for row in rows if row["name"] == overall], looks),
        }
        for kind, differences in comparisons.items():
            shown = [row for row in differences if row["name"] in names]
            name = kind.replace(" ", "-")
            figures[name] = _differences(shown, looks, f"difference, {kind}")
        return save_figures(figures, folder)


def _by_labels(plan: Plan, summary: Rows, looks: Looks) -> Figure:
    """Score by labels, one panel per class: means over the runs with bands of one sd."""
    names = list(dict.fromkeys(row["name"] for row in summary))
    figure, panels = make_panels(len(names), _title(summary[0]["score"]))
    for axes, name in zip(panels, names, strict=True):
        rows = [row for row in summary if row["name"] == name]
        for method, look in looks.items():
            _draw_by_labels(axes, [row for row in rows if row["method"] == method], look)
        _draw_stated(axes, stated_scores(plan.reference, name), looks)
        axes.set_title(name)
        label_shares(axes, summary)
    draw_legend(figure, panels)
    return figure


def _by_method(summary: Rows, looks: Looks) -> Figure | None:
    """Score by labels, one panel per method: it and its twin, with bands of one sd.

    Args:
        summary: rows of one class or region, or of the mean.
        looks: of the methods.
    """
    twins = {row["method"]: row["twin"] for row in summary}
    methods = [method for method in looks if twins.get(method)]
    if len(methods) < 2:
        return None
    figure, panels = make_panels(len(methods), _title(summary[0]["score"]))
    panels_of_twin: dict[str, list[Axes]] = {}
    for axes, method in zip(panels, methods, strict=True):
        for name in (twins[method], method):
            _draw_by_labels(axes, [row for row in summary if row["method"] == name], looks[name])
        axes.set_title(method)
        label_shares(axes, summary)
        axes.legend(loc="best")
        panels_of_twin.setdefault(twins[method], []).append(axes)
    # one scale for methods with the same twin, so that they can be compared
    for group in panels_of_twin.values():
        limits = np.array([axes.get_ylim() for axes in group])
        for axes in group:
            axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    return figure


def _draw_by_labels(axes: Axes, rows: Rows, look: Mapping[str, Any]) -> None:
    rows = sorted(rows, key=lambda row: float(row["fraction"]))
    fractions = [row["fraction"] for row in rows]
    sds = [row["sd"] or 0.0 for row in rows]
    draw_band(axes, fractions, [row["mean"] for row in rows], sds, look)


def _by_steps(results: Sequence[Result], looks: Looks) -> Figure | None:
    """Validation score by fine-tuning steps, one panel per number of labels."""
    metric = VALIDATION_METRICS[results[0].key]
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.labels, result.method), []).append(result)
    curves = {cell: curve(group, metric) for cell, group in groups.items()}
    counts = sorted({labels for (labels, _), values in curves.items() if values})
    if not counts:
        return None
    # registration alone has no steps
    trained = {method for (_, method), values in curves.items() if values}
    title = _title(metric.removesuffix("_mean"))
    figure, panels = make_panels(len(counts), f"{title} of the validation subjects")
    for axes, count in zip(panels, counts, strict=True):
        for method in filter(trained.__contains__, looks):
            points = curves.get((count, method), {})
            means = [float(np.mean(values)) for values in points.values()]
            sds = [
                float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                for values in points.values()
            ]
            draw_band(axes, list(points), means, sds, looks[method])
        to_choose = next(result for result in results if result.labels == count).validation_labels
        axes.set_title(f"{labels_text(count, to_choose)} label{'s' * (count != 1)}")
        # the first validations are close together: they say how fast a method learns
        use_log_axis(axes)
        axes.set_xlabel("fine-tuning step")
    draw_legend(figure, panels)
    return figure


def _by_compute(rows: Rows, looks: Looks) -> Figure | None:
    """Score by all time that a run took, its pre-training included; a panel per number of labels.

    Args:
        rows: of one class or region, or of the mean.
        looks: of the methods.
    """
    shown = [row for row in rows if total_seconds(row)]
    if len({row["method"] for row in shown}) < 2 or len({row["cost_unit"] for row in shown}) > 1:
        return None
    counts = sorted({row["labels"] for row in shown})
    figure, panels = make_panels(len(counts), _title(shown[0]["score"]))
    unit = {"cpu": "processor", "gpu": "GPU"}[shown[0]["cost_unit"]]
    for axes, count in zip(panels, counts, strict=True):
        for row in shown:
            if row["labels"] == count:
                look = {**looks[row["method"]], "linestyle": "none"}
                axes.errorbar(
                    total_seconds(row) / 60, row["mean"], row["sd"] or 0.0, capsize=3, **look
                )
        use_log_axis(axes)
        axes.set_title(f"{count} label{'s' * (count != 1)}")
        axes.set_xlabel(f"{unit} minutes of a run and its pre-training")
    draw_legend(figure, panels)
    return figure


def _differences(rows: Rows, looks: Looks, kind: str) -> Figure | None:
    """Each method minus another, with the 95 % interval, one panel per class."""
    compared = [row for row in rows if row["twin"]]
    if not compared:
        return None
    names = list(dict.fromkeys(row["name"] for row in compared))
    methods = [method for method in looks if any(row["method"] == method for row in compared)]
    counts = sorted({row["labels"] for row in compared})
    texts = {row["labels"]: labels_of(row) for row in rows}
    figure, panels = make_panels(
        len(names), f"{_title(rows[0]['score'])} {kind}, 95\N{NO-BREAK SPACE}%"
    )
    for axes, name in zip(panels, names, strict=True):
        axes.axhline(0, color="black", linewidth=1)
        for number, method in enumerate(methods):
            shown = [row for row in compared if row["method"] == method and row["name"] == name]
            # the methods at a number of labels next to each other, in the middle .6 of its place
            offset = 0.6 * ((number + 0.5) / len(methods) - 0.5)
            places = [counts.index(row["labels"]) + offset for row in shown]
            draw_intervals(axes, places, shown, looks[method], label=looks[method]["label"])
        axes.set_xticks(range(len(counts)), [texts[count] for count in counts])
        axes.set_title(name)
        axes.set_xlabel("labels")
    draw_legend(figure, panels)
    return figure


def _draw_stated(axes: Axes, stated: Sequence[StatedScore], looks: Looks) -> None:
    """Draw a paper's scores thin and dotted, so that nobody takes them for the study's."""
    for model in dict.fromkeys(entry.model for entry in stated):
        points = sorted((entry.fraction, entry.score) for entry in stated if entry.model == model)
        look = looks.get(model.removeprefix("3D-"), {"color": GREY})
        axes.plot(
            [fraction for fraction, _ in points],
            [score for _, score in points],
            color=look["color"],
            linestyle=":",
            linewidth=1,
            marker="x",
            markersize=4,
            label=f"paper A states: {model}",
        )


def _title(score: str) -> str:
    return score.replace("_", " ").capitalize()
