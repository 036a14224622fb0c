"""A study's figures, from its run folders alone: score by labels, by steps, and the difference to the twin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.run_folder import read_metrics
from selfvox.studies import reference
from selfvox.studies.class_scores import ACCURACY, KAPPA
from selfvox.studies.plan import Plan
from selfvox.studies.results import Result

STYLE = Path(__file__).parent / "figures.mplstyle"
GREY = "0.35"
LEGEND_ROW = 0.2  # inches
MEASURED = {
    "dice": "dice_mean",
    KAPPA: "kappa",
    ACCURACY: ACCURACY,
}  # in validation, of what is compared
Rows = Sequence[Mapping[str, Any]]
STATED: dict[str, Callable[[str], list[reference.Stated]]] = {"brats2018": reference.brats2018}


def draw(
    plan: Plan, found: Sequence[Result], summary: Rows, further: Mapping[str, Rows], folder: Path
) -> list[Path]:
    """Draw all figures of what is done into `folder`; winners and losers alike.

    Args:
        plan: says whose numbers to draw beside.
        found: the runs.
        summary: means and differences to the twins.
        further: other differences, by what they are.
        folder: is made.
    """
    folder.mkdir(exist_ok=True)
    made = []
    names = [*found[0].averaged(), found[0].overall]
    shown = [row for row in summary if row["name"] in names]
    others = {what: [row for row in rows if row["name"] in names] for what, rows in further.items()}
    with mpl.style.context(STYLE):
        looks = looks_of(found, {row["twin"] for row in further["equal compute"]})
        for name, figure in (
            ("labels", _by_labels(plan, shown, looks)),
            (
                "methods",
                _by_method([row for row in shown if row["name"] == found[0].overall], looks),
            ),
            ("steps", _by_steps(found, looks)),
            ("differences", _differences(shown, looks, "minus its twin's")),
            *(
                (what.replace(" ", "-"), _differences(rows, looks, f"difference, {what}"))
                for what, rows in others.items()
            ),
        ):
            if figure is not None:
                made.append(folder / f"{name}.png")
                with atomic_write(made[-1]) as temporary:
                    figure.savefig(temporary, metadata={"Software": None})
    return made


def looks_of(found: Sequence[Result], equal: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """A colour for each method, the same in 2D, which is dashed; twins are grey, those at equal compute dotted."""
    methods = {result.method: result for result in found}
    twins = {name for name, result in methods.items() if result.twin is None or name in equal}
    coloured = list(
        dict.fromkeys(name.removeprefix("2D-") for name in methods if name not in twins)
    )
    colours = [each["color"] for each in mpl.rcParams["axes.prop_cycle"]]
    looks: dict[str, dict[str, Any]] = {}
    for name, result in methods.items():
        transductive = any(each.transductive for each in found if each.method == name)
        own = (
            GREY
            if name in twins
            else colours[coloured.index(name.removeprefix("2D-")) % len(colours)]
        )
        looks[name] = {
            "color": own,
            "linestyle": ":" if name in equal else "--" if result.slices else "-",
            "marker": "s" if name in twins else "o",
            "label": name + (" (transductive)" if transductive else ""),
        }
    return looks


def _by_labels(plan: Plan, summary: Rows, looks: Mapping[str, dict[str, Any]]) -> Figure:
    """Score by labels, one panel a class: means over the runs, and bands of one standard deviation."""
    names = list(dict.fromkeys(row["name"] for row in summary))
    figure, panels = make_panels(len(names), _title(summary[0]["score"]))
    stated = STATED.get(plan.reference or "")
    for axes, name in zip(panels, names, strict=True):
        for method, look in looks.items():
            _by_fraction(
                axes,
                [row for row in summary if row["method"] == method and row["name"] == name],
                look,
            )
        _draw_stated(axes, stated(name) if stated else [], looks)
        axes.set_title(name)
        _label_axis(axes, summary)
    draw_legend(figure, panels)
    return figure


def _by_method(summary: Rows, looks: Mapping[str, dict[str, Any]]) -> Figure | None:
    """Score by labels, one panel a method: it and its twin, with bands of one standard deviation.

    Args:
        summary: of one class or region, or of all.
        looks: of the methods.
    """
    twins = {row["method"]: row["twin"] for row in summary}
    methods = [method for method in looks if twins.get(method)]
    if len(methods) < 2:
        return None
    figure, panels = make_panels(len(methods), _title(summary[0]["score"]))
    beside: dict[str, list[Axes]] = {}
    for axes, method in zip(panels, methods, strict=True):
        for each in (twins[method], method):
            _by_fraction(axes, [row for row in summary if row["method"] == each], looks[each])
        axes.set_title(method)
        _label_axis(axes, summary)
        axes.legend(loc="best")
        beside.setdefault(twins[method], []).append(axes)
    for group in beside.values():  # methods of one twin can be compared
        reach = np.array([axes.get_ylim() for axes in group])
        for axes in group:
            axes.set_ylim(reach[:, 0].min(), reach[:, 1].max())
    return figure


def _by_fraction(axes: Axes, rows: Rows, look: Mapping[str, Any]) -> None:
    rows = sorted(rows, key=lambda row: float(row["fraction"]))
    sds = [row["sd"] or 0.0 for row in rows]
    _curve(axes, [row["fraction"] for row in rows], [row["mean"] for row in rows], sds, look)


def _curve(
    axes: Axes, x: Sequence[Any], means: Sequence[Any], sds: Sequence[Any], look: Mapping[str, Any]
) -> None:
    """Means of one method, and a band of one standard deviation over its runs."""
    mean, sd = np.array(means), np.array(sds)
    axes.plot(x, mean, **look)
    axes.fill_between(x, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)


def _label_axis(axes: Axes, summary: Rows) -> None:
    axes.set_xlabel("share of the labels, and their number")
    share_axis(axes, dict(sorted((float(row["fraction"]), int(row["labels"])) for row in summary)))


def _by_steps(found: Sequence[Result], looks: Mapping[str, dict[str, Any]]) -> Figure | None:
    """Validation score by fine-tuning steps, one panel a number of labels: means over the runs."""
    curves: dict[tuple[int, str], dict[int, list[float]]] = {}
    score = MEASURED[found[0].key]
    for result in found:
        for line in (line for path in result.paths for line in read_metrics(path)):
            if score in line:
                curves.setdefault((result.labels, result.method), {}).setdefault(
                    line["step"], []
                ).append(line[score])
    if not curves:
        return None
    labels = sorted({key[0] for key in curves})
    figure, panels = make_panels(
        len(labels), f"{_title(score.removesuffix('_mean'))} of the validation subjects"
    )
    for axes, count in zip(panels, labels, strict=True):
        for method, look in looks.items():
            points = sorted(curves.get((count, method), {}).items())
            sds = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for _, values in points]
            _curve(
                axes,
                [step for step, _ in points],
                [np.mean(values) for _, values in points],
                sds,
                look,
            )
        axes.set_title(f"{count} label{'s' * (count != 1)}")
        axes.set_xlabel("fine-tuning step")
    draw_legend(figure, panels)
    return figure


def _differences(summary: Rows, looks: Mapping[str, dict[str, Any]], what: str) -> Figure | None:
    """Each method minus another, with the 95 % interval, one panel a class."""
    compared = [row for row in summary if row["twin"]]
    if not compared:
        return None
    names = list(dict.fromkeys(row["name"] for row in compared))
    methods = [method for method in looks if any(row["method"] == method for row in compared)]
    counts = sorted({row["labels"] for row in compared})
    figure, panels = make_panels(len(names), f"{_title(summary[0]['score'])} {what}, 95 %")
    for axes, name in zip(panels, names, strict=True):
        axes.axhline(0, color="black", linewidth=1)
        for number, method in enumerate(methods):
            rows = [row for row in compared if row["method"] == method and row["name"] == name]
            place = [
                counts.index(row["labels"]) + 0.6 * ((number + 0.5) / len(methods) - 0.5)
                for row in rows
            ]
            mean = np.array([row["difference"] for row in rows])
            reach = [mean - [row["low"] for row in rows], [row["high"] for row in rows] - mean]
            look = looks[method]
            axes.errorbar(
                place,
                mean,
                np.maximum(reach, 0),
                fmt=look["marker"],
                color=look["color"],
                label=look["label"],
                capsize=3,
            )
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_title(name)
        axes.set_xlabel("labels")
    draw_legend(figure, panels)
    return figure


def _draw_stated(
    axes: Axes, stated: Sequence[reference.Stated], looks: Mapping[str, dict[str, Any]]
) -> None:
    """A paper's own numbers, thin and dotted, so that nobody takes them for ours; coloured like ours of the name."""
    for model in dict.fromkeys(each.model for each in stated):
        points = sorted((each.fraction, each.score) for each in stated if each.model == model)
        axes.plot(
            *zip(*points, strict=True),
            color=looks.get(model.removeprefix("3D-"), {"color": GREY})["color"],
            linestyle=":",
            linewidth=1,
            marker="x",
            markersize=4,
            label=f"paper A states: {model}",
        )


def make_panels(count: int, score: str) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most three in a row, and what they show upwards."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.4 * rows + 0.7))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[:count:columns]:
        axes.set_ylabel(score)
    return figure, list(grid[:count])


def share_axis(axes: Axes, labels: Mapping[float, int]) -> None:
    """Shares on a logarithmic axis, each with its number of labels; where there are few, the curves differ."""
    axes.set_xscale("log")
    shares = [f"{100 * share:.{0 if share >= 0.1 else 1}f} %" for share in labels]
    ticks = [f"{share}\n{count}" for share, count in zip(shares, labels.values(), strict=True)]
    axes.set_xticks(list(labels), ticks, fontsize="small")
    axes.xaxis.set_minor_locator(NullLocator())


def draw_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, below them, in as many columns as the figure is wide enough for."""
    handles, labels = panels[0].get_legend_handles_labels()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for columns in range(min(4, max(1, len(labels))), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))


def _title(score: str) -> str:
    return score.replace("_", " ").capitalize()
