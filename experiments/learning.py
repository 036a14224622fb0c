"""Does every pretext task learn on real scans? Score compared with chance after some CPU minutes.

    python experiments/learning.py OUT NAME=SCANS/ ... --minutes 2

NAME is hippocampus, slices, heads or fundus. Runs that are finished are kept, so a killed
experiment continues where it stopped. Prints a table and draws OUT/learning.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import selfvox
from selfvox.runs.atomic_files import write_json
from selfvox.runs.run_folder import read_metrics
from selfvox.tasks import task_names

TRIAL = 4  # steps of the timed trial
MOST = 1500  # steps of a run at most
BATCH = {"rotation": 8, "relative_location": 16, "simclr": 12, "exemplar": 12}
OPTIONS: dict[str, dict[str, Any]] = {
    "relative_location": {"queries": 8},
    "simclr": {"ops_per_view": 2, "temperature": 0.2},
    "exemplar": {"objective": "contrastive"},
}
CROPS: dict[str, tuple[int, ...]] = {
    "hippocampus": (32, 40, 32),
    "slices": (32, 40),
    "heads": (48, 48, 48),
    "heads-4mm": (32, 32, 32),
    "fundus": (128, 128),
}
SLICES = {"slices": "axial"}
SPACING = {"heads-4mm": (4.0, 4.0, 4.0)}
NETWORK = {"name": "plain", "channels": (8, 16, 32, 64)}


def main() -> None:
    """Run what is not there yet, then show all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="*", help="NAME=SCANS")
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU minutes of each run")
    parser.add_argument("--tasks", nargs="*", choices=task_names(), help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = dict(entry.split("=", 1) for entry in arguments.data)
    for name, scans in data.items():
        store = arguments.out / name / "store"
        if not (store / "manifest.json").exists():
            selfvox.prepare(scans, out=store, workers=1, spacing=SPACING.get(name))
        for task in arguments.tasks or task_names():
            run = arguments.out / name / task
            if not (run / "cost.json").exists():
                learn(name, store, task, run, 60 * arguments.minutes)
    show(arguments.out)


def learn(name: str, store: Path, task: str, run: Path, budget_s: float) -> None:
    """Time a few steps, then train for as many as the budget allows."""
    settings: dict[str, Any] = {
        "task": {"name": task, **OPTIONS.get(task, {})},
        "batch": BATCH.get(task, 4),
        "crop": CROPS.get(name),
        "slices": SLICES.get(name),
        "network": NETWORK,
        "seed": 0,
    }
    chosen = run.parent / f"{task}-steps.json"
    if not chosen.exists():
        cost = [
            seconds(lambda steps=steps: trial(store, run, settings, steps))
            for steps in (1, 2, 2 + TRIAL)
        ][1:]  # the first pays imports
        write_json(
            chosen,
            {"steps": min(MOST, max(20, round(budget_s * TRIAL / max(0.01, cost[1] - cost[0]))))},
        )
    number = json.loads(chosen.read_text())["steps"]
    took = seconds(
        lambda: selfvox.pretrain(store, out=run, steps=number, **settings, resume=run.exists())
    )
    write_json(run / "cost.json", {"cpu_s": took, "steps": number})


def trial(store: Path, run: Path, settings: dict[str, Any], steps: int) -> None:
    """A few steps, for their cost."""
    out = run.parent / "trials" / f"{run.name}-{steps}"
    selfvox.pretrain(store, out=out, steps=steps, resume=out.exists(), **settings)


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def show(out: Path) -> None:
    """Print the table, and draw one panel for each data set."""
    data = sorted({path.parent.parent.name for path in out.glob("*/*/cost.json")})
    figure = Figure(figsize=(5 * len(data), 9), layout="constrained")
    panels = figure.subplots(2, len(data), squeeze=False)
    print(f"{'data':<14}{'task':<20}steps  CPU s   loss: first, last   score: first, last   chance")
    for column, name in enumerate(data):
        for number, task in enumerate(task_names()):
            run = out / name / task
            if not (run / "cost.json").exists():
                continue
            cost = json.loads((run / "cost.json").read_text())
            lines = read_metrics(run)
            score = next(
                key for key in ("accuracy", "explained", "ordered", "loss") if key in lines[-1]
            )
            tail = max(1, min(5, len(lines) // 4))
            first = lines[0]
            last = {key: np.mean([line[key] for line in lines[-tail:]]) for key in ("loss", score)}
            chance = lines[-1].get("chance", 0.0)
            print(
                f"{name:<14}{task:<20}{cost['steps']:>5}{cost['cpu_s']:>7.0f}"
                f"   {first['loss']:.3f}  {last['loss']:.3f}"
                f"       {score} {first[score]:.3f}  {last[score]:.3f}       {chance:.3f}"
            )
            steps = np.array([line["step"] for line in lines]) / cost["steps"]
            panels[0, column].plot(
                steps, smooth([line[score] for line in lines]), color=f"C{number}"
            )
            fall = smooth([line["loss"] / lines[0]["loss"] for line in lines])
            panels[1, column].plot(steps, fall, color=f"C{number}", label=f"{task}: {score}")
        panels[0, column].set(title=name, ylim=(0, 1), ylabel="score")
        panels[1, column].set(xlabel="share of the run", ylabel="loss over the first loss")
        for panel in panels[:, column]:
            panel.grid(alpha=0.3)
    labels = dict(
        label
        for panel in panels[1]
        for label in zip(*panel.get_legend_handles_labels()[::-1], strict=True)
    )
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside lower center",
        ncols=min(len(labels), 2 * panels.shape[1]),
    )
    figure.savefig(out / "learning.png", dpi=100)


def smooth(values: list[float]) -> np.ndarray:
    """Running mean of five."""
    padded = np.pad(np.asarray(values, float), 2, mode="edge")
    return np.convolve(padded, np.ones(5) / 5, mode="valid")


if __name__ == "__main__":
    main()
