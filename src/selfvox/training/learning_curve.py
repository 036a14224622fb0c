"""The learning curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfvox.runs.atomic_files import atomic_write
from selfvox.runs.run_folder import read_metrics
from selfvox.training.embedding_health import chance_scores

Lines = list[dict[str, Any]]
GUESS: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
OF_CLASSES = (
    "kappa",
    "accuracy",
    "balanced_accuracy",
    "auc",
)  # of validation, where whole scans are classified


def draw_curve(run: Path, out: Path) -> None:
    """Draw what `metrics.jsonl` holds: loss, score beside chance or those of validation, probe, embeddings."""
    lines = read_metrics(run)
    if not lines:
        return
    names = list(dict.fromkeys(name for line in lines for name in line))
    panels = [_loss, _scores]
    panels += [_probe] if "probe/linear" in names else []
    panels += [_embeddings, _views] if "health/spread" in names else []
    figure = Figure(figsize=(7, 1 + 2.5 * len(panels)), layout="constrained")
    column = figure.subplots(len(panels), sharex=True)
    for draw, axes in zip(panels, column, strict=True):
        axes.grid(alpha=0.3)
        draw(axes, lines, names)
    column[-1].set_xlabel("step")
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def _loss(axes: Axes, lines: Lines, names: list[str]) -> None:
    """The loss; of several tasks, each one's too."""
    axes.set_ylabel("loss")
    _plot(axes, lines, "loss", color="tab:gray")
    own = [name for name in names if name.endswith("/loss")]
    for name in own:
        _plot(axes, lines, name, label=name.removesuffix("/loss"))
    if own:
        axes.legend(loc="best")


def _scores(axes: Axes, lines: Lines, names: list[str]) -> None:
    """What the task scores, beside chance, or the scores of validation."""
    axes.set_ylabel("score")
    # kappa alone can be below 0
    axes.set_ylim(min([0, *(line["kappa"] for line in lines if "kappa" in line)]), 1)
    beside = list(dict.fromkeys(name for line in lines for name in chance_scores(line)))
    for number, name in enumerate(beside):
        _plot(axes, lines, name, color=f"C{number}")
        guess = [(line["step"], chance_scores(line)[name].chance) for line in lines if name in line]
        style = GUESS if len(beside) == 1 else {**GUESS, "color": f"C{number}"}
        axes.plot(*zip(*guess, strict=True), label="chance" if len(beside) == 1 else None, **style)
    for name in names:
        if name.startswith("dice") or (name in OF_CLASSES and name not in beside):
            _plot(axes, lines, name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", title="dashed: chance" if len(beside) > 1 else None)


def _probe(axes: Axes, lines: Lines, names: list[str]) -> None:
    """The probe, beside that of the untrained encoder and chance."""
    axes.set_ylabel("probe: balanced accuracy")
    axes.set_ylim(0, 1)
    for number, kind in enumerate(("linear", "knn")):
        _plot(axes, lines, f"probe/{kind}", label=kind, color=f"C{number}")
        axes.axhline(
            _last(lines, f"probe/untrained_{kind}"),
            color=f"C{number}",
            linestyle=":",
            label=f"{kind}, untrained",
        )
    axes.axhline(_last(lines, "probe/chance"), label="chance", **GUESS)
    axes.legend(loc="best", ncols=3)


def _embeddings(axes: Axes, lines: Lines, names: list[str]) -> None:
    """Whether embeddings differ: their spread on the left, their effective rank on the right."""
    _two(
        axes,
        lines,
        ("health/spread", "spread (0: collapsed, 1: ideal)"),
        ("health/rank", "effective rank"),
    )


def _views(axes: Axes, lines: Lines, names: list[str]) -> None:
    """Whether two views are alike, on the left, while different crops are not, on the right."""
    _two(
        axes,
        lines,
        ("health/alignment", "alignment (0: views alike)"),
        ("health/uniformity", "uniformity (0: all alike)"),
    )


def _two(axes: Axes, lines: Lines, left: tuple[str, str], right: tuple[str, str]) -> None:
    """Two metrics of different scale, each with its own axis that shows 0."""
    for colour, beside, (name, label) in (("C0", axes, left), ("C1", axes.twinx(), right)):
        _plot(beside, lines, name, color=colour)
        beside.set_ylabel(label, color=colour, fontsize="small")
        far = 1.15 * max((line[name] for line in lines if name in line), key=abs)
        if far:
            beside.set_ylim(min(0, far), max(0, far))


def _plot(
    axes: Axes, lines: Iterable[dict[str, Any]], name: str, label: str | None = None, **style: Any
) -> None:
    """One metric over the steps at which it was measured."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    marker = "." if len(points) < 50 else None
    axes.plot(
        *zip(*points, strict=True), label=label or name.replace("_", " "), marker=marker, **style
    )


def _last(lines: Lines, name: str) -> float:
    return float(next(line[name] for line in reversed(lines) if name in line))
