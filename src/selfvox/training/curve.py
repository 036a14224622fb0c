"""The learning curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from selfvox.files import whole
from selfvox.run import read_metrics


def draw_curve(run: Path, out: Path) -> None:
    """Draw what `metrics.jsonl` holds: the loss, and below it the score beside chance or the validation Dice."""
    lines = read_metrics(run)
    if not lines:
        return
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot([line["step"] for line in lines], [line["loss"] for line in lines], color="tab:gray")
    above.set_ylabel("loss")
    scores = [name for name in lines[-1] if name == "accuracy" or name.startswith("dice")]
    scores += [name for line in lines for name in line if name.startswith("dice") and name not in scores]
    for name in dict.fromkeys(scores):
        points = [(line["step"], line[name]) for line in lines if name in line]
        below.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker="." if len(points) < 50 else None)
    chance = [(line["step"], line["chance"]) for line in lines if "chance" in line]
    if chance:
        below.plot(*zip(*chance, strict=True), label="chance", color="black", linestyle="--", linewidth=1)
    below.set_xlabel("step")
    below.set_ylim(0, 1)
    if scores:
        below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with whole(out) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
