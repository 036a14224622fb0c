"""The learning curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.run_folder import read_metrics
from selfvox.training.embedding_health import chance_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = list[dict[str, Any]]
DrawPanel = Callable[["Axes", Lines], None]

CHANCE_STYLE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
# scores of validation, where whole scans are classified, or a number is predicted of them too
CLASSIFICATION_SCORES = ("kappa", "accuracy", "balanced_accuracy", "auc")
WHOLE_SCAN_SCORES = (*CLASSIFICATION_SCORES, "skill")
CAN_BE_NEGATIVE = ("kappa", "skill", "explained")
FEW_POINTS = 50  # a curve of fewer points marks each


def draw_curve(run: Path, out: Path, loss_label: str = "loss") -> None:
    """Draw the metrics of a run: loss, scores with their chance levels, probe and embeddings.

    Args:
        run: its `metrics.jsonl` is read; without lines nothing is drawn.
        out: the picture.
        loss_label: what the loss is called.
    """
    lines = read_metrics(run)
    if not lines:
        return
    panels: list[DrawPanel] = [_draw_loss, _draw_scores]
    names = _metric_names(lines)
    if "probe/linear" in names:
        panels.append(_draw_probe)
    if "health/spread" in names:
        panels += [_draw_embeddings, _draw_views]
    from matplotlib.figure import Figure  # only here: it takes half a second

    figure = Figure(figsize=(7, 1 + 2.5 * len(panels)), layout="constrained")
    column = figure.subplots(len(panels), sharex=True)
    for draw_panel, axes in zip(panels, column, strict=True):
        axes.grid(alpha=0.3)
        draw_panel(axes, lines)
    column[0].set_ylabel(loss_label)
    column[-1].set_xlabel("step")
    with atomic_write(out) as temporary:
        # without the version of matplotlib, the same curve is the same file
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def _metric_names(lines: Lines) -> list[str]:
    """All metrics, in the order of their first line."""
    return list(dict.fromkeys(name for line in lines for name in line))


def _draw_loss(axes: Axes, lines: Lines) -> None:
    """The loss, and of several tasks the loss of each; dashed, that of random guesses."""
    _plot(axes, lines, "loss", color="tab:gray")
    names = _metric_names(lines)
    if "loss_chance" in names:
        _plot(axes, lines, "loss_chance", label="chance", **CHANCE_STYLE)
    for number, name in enumerate(name for name in names if name.endswith("/loss")):
        color = f"C{number}"
        _plot(axes, lines, name, label=name.removesuffix("/loss"), color=color)
        if f"{name}_chance" in names:
            style = {**CHANCE_STYLE, "color": color}
            _plot(axes, lines, f"{name}_chance", label="_dashed", **style)
    if len(axes.lines) > 1:
        axes.legend(loc="best")


def _draw_scores(axes: Axes, lines: Lines) -> None:
    """The scores of the task with their chance levels, or the scores of validation."""
    axes.set_ylabel("score")
    negative = [
        value
        for line in lines
        for name, value in line.items()
        if name in CAN_BE_NEGATIVE or name.endswith("/explained")
    ]
    # below -1 a score says no more than that it is bad
    axes.set_ylim(max(-1, min([0, *negative])), 1)
    with_chance = list(dict.fromkeys(name for line in lines for name in chance_scores(line)))
    for number, name in enumerate(with_chance):
        color = f"C{number}"
        _plot(axes, lines, name, color=color)
        scored = [line for line in lines if name in line]
        chance = [chance_scores(line)[name].chance for line in scored]
        style = CHANCE_STYLE if len(with_chance) == 1 else {**CHANCE_STYLE, "color": color}
        label = "chance" if len(with_chance) == 1 else None
        axes.plot([line["step"] for line in scored], chance, label=label, **style)
    for name in _metric_names(lines):
        is_score = name in WHOLE_SCAN_SCORES and name not in with_chance
        if name.startswith("dice") or is_score:
            _plot(axes, lines, name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", title="dashed: chance" if len(with_chance) > 1 else None)


def _draw_probe(axes: Axes, lines: Lines) -> None:
    """The probe's scores, with those of the untrained encoder and of guesses."""
    axes.set_ylabel("probe: balanced accuracy")
    axes.set_ylim(0, 1)
    for number, kind in enumerate(("linear", "knn")):
        color = f"C{number}"
        _plot(axes, lines, f"probe/{kind}", label=kind, color=color)
        untrained = _last_value(lines, f"probe/untrained_{kind}")
        axes.axhline(untrained, color=color, linestyle=":", label=f"{kind}, untrained")
    axes.axhline(_last_value(lines, "probe/chance"), label="chance", **CHANCE_STYLE)
    axes.legend(loc="best", ncols=3)


def _draw_embeddings(axes: Axes, lines: Lines) -> None:
    """Whether embeddings differ: their spread on the left, their effective rank on the right."""
    _draw_on_left(axes, lines, "health/spread", "spread (0: collapsed, 1: ideal)")
    _draw_on_right(axes, lines, "health/rank", "effective rank")


def _draw_views(axes: Axes, lines: Lines) -> None:
    """Whether two views are alike, on the left, while different crops are not, on the right."""
    _draw_on_left(axes, lines, "health/alignment", "alignment (0: views alike)")
    _draw_on_right(axes, lines, "health/uniformity", "uniformity (0: all alike)")


def _draw_on_left(axes: Axes, lines: Lines, name: str, label: str) -> None:
    _draw_from_zero(axes, lines, name, label, "C0")


def _draw_on_right(axes: Axes, lines: Lines, name: str, label: str) -> None:
    """On an axis of its own scale."""
    _draw_from_zero(axes.twinx(), lines, name, label, "C1")


def _draw_from_zero(axes: Axes, lines: Lines, name: str, label: str, color: str) -> None:
    """One metric on an axis that shows 0."""
    _plot(axes, lines, name, color=color)
    axes.set_ylabel(label, color=color, fontsize="small")
    extreme = 1.15 * max((line[name] for line in lines if name in line), key=abs)
    if extreme:
        axes.set_ylim(min(0, extreme), max(0, extreme))


def _plot(axes: Axes, lines: Lines, name: str, label: str | None = None, **style: Any) -> None:
    """One metric over the steps at which it was measured."""
    measured = [line for line in lines if name in line]
    steps = [line["step"] for line in measured]
    values = [line[name] for line in measured]
    marker = "." if len(values) < FEW_POINTS else None
    axes.plot(steps, values, label=label or name.replace("_", " "), marker=marker, **style)


def _last_value(lines: Lines, name: str) -> float:
    return float(next(line[name] for line in reversed(lines) if name in line))
