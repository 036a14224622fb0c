"""How many labels does pre-training save on the decathlon's hippocampus? From-scratch twins at every number of labels.

Each cell is a run folder, made once; a killed study goes on where it stopped:

    python benchmarks/hippocampus.py DATA/Task04_Hippocampus OUT --part 0/2   # in one shell
    python benchmarks/hippocampus.py DATA/Task04_Hippocampus OUT --part 1/2   # in another
    python benchmarks/hippocampus.py DATA/Task04_Hippocampus OUT --table

40 subjects are tested once; 20 others chose the settings below and pick the weights within each run.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import selfvox
from selfvox.runs.atomic_files import write_json

TASKS = {
    "rotation": {"task": "rotation", "batch": 4, "steps": 1000, "crop": (32, 48, 32)},
    "simclr": {
        "task": {"name": "simclr", "ops_per_view": 2, "temperature": 0.2},
        "batch": 8,
        "steps": 300,
        "crop": (32, 48, 32),
    },
}
STEPS, LABELS, SEEDS = 150, (3, 5, 10), range(5)
ARMS = (
    "scratch",
    "rotation",
    "simclr",
    "rotation frozen",
    "simclr frozen",
    "scratch equal compute",
)


def main() -> None:
    """Run one part of the study, or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", default="0/1", help="i/n: every nth cell, from the ith on")
    parser.add_argument("--table", action="store_true", help="print what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print_table(given.out)
        return
    part, parts = map(int, given.part.split("/"))
    store = given.out / "store"
    if part == 0:
        selfvox.prepare(given.data, out=store, test=40, validation=20)
    wait_for(store / "split.json")
    for number, (name, settings) in enumerate(TASKS.items()):
        if number % parts == part:
            run = given.out / "pretrain" / name
            once(
                run / "cost.json", lambda run=run, settings=settings: pretrain(store, run, settings)
            )
    cells = [(arm, labels, seed) for seed in SEEDS for arm in ARMS for labels in LABELS]
    for arm, labels, seed in cells[part::parts]:
        run = given.out / "cells" / arm.replace(" ", "-") / f"{labels}-labels-seed-{seed}"
        once(
            run / "cost.json",
            lambda cell=(arm, labels, seed), run=run: fine_tune(given, store, run, *cell),
        )


def once(done: Path, work: Callable[[], None]) -> None:
    """Do the work unless `done` says that it was; keep the CPU seconds it took."""
    if not done.exists():
        began = time.process_time()
        work()
        write_json(done, {"cpu_s": time.process_time() - began})


def pretrain(store: Path, run: Path, settings: dict) -> None:
    """Pre-train on everything but the test subjects."""
    selfvox.pretrain(store, out=run, seed=0, resume=run.exists(), **settings)


def fine_tune(
    given: argparse.Namespace, store: Path, run: Path, arm: str, labels: int, seed: int
) -> None:
    """Train, predict the test subjects, score."""
    task = next((task for task in TASKS if arm.startswith(task)), None)
    encoder = given.out / "pretrain" / task if task else None
    if encoder:
        wait_for(encoder / "cost.json")
    selfvox.finetune(
        store,
        out=run,
        encoder=str(encoder) if encoder else "none",
        labels=labels,
        seed=seed,
        steps=equal_compute_steps(given.out) if "equal" in arm else STEPS,
        freeze="always" if "frozen" in arm else "warmup",
        resume=run.exists(),
    )
    selfvox.predict(run, given.data, out=run / "predictions", subset="test")
    selfvox.evaluate(run / "predictions", given.data / "labelsTr", out=run / "scores.csv")


def equal_compute_steps(out: Path) -> int:
    """Fine-tuning steps in the CPU time of a scratch run plus the dearest pre-training."""
    for task in TASKS:
        wait_for(out / "pretrain" / task / "cost.json")
    dearest = max(cpu_seconds(out / "pretrain" / task) for task in TASKS)
    runs = [path.parent for path in (out / "cells" / "scratch").glob("*/cost.json")]
    return round(STEPS * (1 + dearest / float(np.median([cpu_seconds(run) for run in runs]))))


def cpu_seconds(run: Path) -> float:
    """What the run cost."""
    return float(json.loads((run / "cost.json").read_text())["cpu_s"])


def wait_for(path: Path) -> None:
    """Another part is making it."""
    while not path.exists():
        time.sleep(5)


def print_table(out: Path) -> None:
    """Mean Dice over classes and test subjects per arm, and paired differences to the from-scratch twin."""
    print(
        f"{'arm':<24}labels  runs  Dice mean ± sd    minus scratch: median, wins, 95 % interval of the mean"
    )
    for labels in LABELS:
        twin = read(out, "scratch", labels)
        for arm in ARMS:
            scores = read(out, arm, labels)
            if not scores:
                continue
            means = [values.mean() for values in scores.values()]
            line = f"{arm:<24}{labels:>6}{len(means):>6}  {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
            seeds = [seed for seed in scores if seed in twin]
            if arm != "scratch" and seeds:
                paired = np.stack([scores[seed] - twin[seed] for seed in seeds])  # (seed, subject)
                by_seed = paired.mean(1)
                low, high = bootstrap(paired)
                wins = f"{int((by_seed > 0).sum())} of {len(seeds)}"
                line += f"     {np.median(by_seed):+.3f}  {wins}  {low:+.3f} ... {high:+.3f}"
            print(line)
    done = [task for task in TASKS if (out / "pretrain" / task / "cost.json").exists()]
    print(
        "CPU seconds of pre-training:",
        {task: round(cpu_seconds(out / "pretrain" / task)) for task in done},
    )


def read(out: Path, arm: str, labels: int) -> dict[int, np.ndarray]:
    """By seed: the mean Dice over the classes of each test subject, in the order of their names."""
    found = {}
    for seed in SEEDS:
        file = out / "cells" / arm.replace(" ", "-") / f"{labels}-labels-seed-{seed}" / "scores.csv"
        if file.exists():
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            names = sorted({row["case"] for row in rows})
            of_case = {
                name: [float(row["dice"]) for row in rows if row["case"] == name] for name in names
            }
            found[seed] = np.array([np.mean(values) for values in of_case.values()])
    return found


def bootstrap(paired: np.ndarray, draws: int = 5000) -> tuple[float, float]:
    """95 % interval of the mean difference, seeds and subjects drawn anew, independently."""
    rng = np.random.default_rng(0)
    seeds, subjects = paired.shape
    means = [
        paired[rng.integers(seeds, size=seeds)][:, rng.integers(subjects, size=subjects)].mean()
        for _ in range(draws)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


if __name__ == "__main__":
    main()
