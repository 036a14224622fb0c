"""Which scans to label next? The loop of predicting, correcting and training again, simulated.

    python experiments/label_loop.py OUT DATA --seeds 0,1,2,3,4

The truth is the corrector: a suggested scan gets its true label. Each order (random, trust,
coverage, both) starts from the same labelled subjects, and gets as many corrected scans in each
round; a network from scratch is trained on all labels of the order and scored on test subjects
that are never suggested. A second call continues, also with more seeds, rounds or orders. At the
end, a table is printed, mean Dice by the number of corrected scans, and each order minus random on
the same seeds, with a t interval; OUT/orders.png draws both.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import selfvox
from selfvox.data.sources import Case, find_dataset
from selfvox.plotting import save_figure
from selfvox.reports.charts import COLOURS
from selfvox.runs.atomic_files import write_csv, write_text

ORDERS = ("random", "trust", "coverage", "both")
TRAINING = {
    "crop": (32, 32, 32),
    "network": {"name": "plain", "channels": [8, 16, 32, 64]},
    "augment": "light",
    "keep": "last",
    "device": "cpu",
    "workers": 1,
}


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--start", type=int, default=2, help="labelled subjects at the start")
    parser.add_argument("--each", type=int, default=2, help="corrected scans in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument("--passes", type=int, default=8, help="that trust is measured by")
    parser.add_argument("--pool", type=int, default=40, help="subjects to suggest from")
    parser.add_argument("--test", type=int, default=30)
    arguments = parser.parse_args()
    cases = {case.id: case for case in find_dataset(arguments.data).cases if case.label}
    subjects = np.random.default_rng(0).permutation(sorted({c.subject for c in cases.values()}))
    test = subjects[: arguments.test]
    pool = subjects[arguments.test :][: arguments.pool]
    write_list(arguments.out / "test.txt", cases, test)
    write_list(arguments.out / "pool.txt", cases, pool)
    embeddings = embed(arguments.out)
    for seed in map(int, arguments.seeds.split(",")):
        start = np.random.default_rng(seed).permutation(pool)[: arguments.start]
        for order in arguments.orders.split(","):
            run_order(arguments, cases, list(start), pool, seed, order, embeddings)
    start, rows = print_table(arguments.out)
    draw_figure(start, rows, arguments.each, arguments.out / "orders.png")


def write_list(file: Path, cases: dict[str, Case], subjects: np.ndarray) -> None:
    """A list of the scans of some subjects."""
    chosen = [str(case.images[0].resolve()) for case in cases.values() if case.subject in subjects]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "\n".join(chosen) + "\n")


def embed(out: Path) -> Path:
    """Vectors of the pool, by an encoder that is pre-trained on it without labels."""
    if not (out / "embeddings" / "embeddings.npz").exists():
        if not (out / "encoder" / "encoder").exists():
            settings = {key: TRAINING[key] for key in ("crop", "network", "device", "workers")}
            settings["resume"] = (out / "encoder" / "settings.yaml").exists()
            selfvox.pretrain(out / "pool.txt", out=out / "encoder", steps=300, batch=4, **settings)
        selfvox.embed(out / "encoder", out / "pool.txt", out=out / "embeddings", device="cpu")
    return out / "embeddings"


def run_order(
    arguments: argparse.Namespace,
    cases: dict[str, Case],
    labelled: list[str],
    pool: np.ndarray,
    seed: int,
    order: str,
    embeddings: Path,
) -> None:
    """All rounds of one order with one seed."""
    shuffled = [
        s for s in np.random.default_rng(seed + 1000).permutation(pool) if s not in labelled
    ]
    for number in range(arguments.rounds + 1):
        # the first network is the same for all orders
        name = f"{'start' if number == 0 else order}_{seed}_{number}"
        folder = arguments.out / name
        if not (folder / "round.json").exists():
            write_round(arguments, folder, cases, labelled, seed)
        if number == arguments.rounds:
            return
        if order == "random":
            labelled = [*labelled, *shuffled[number * arguments.each :][: arguments.each]]
            continue
        if order != "coverage":
            predict_pool(arguments, folder)
        rows = selfvox.suggest(
            embeddings,
            predictions=None if order == "coverage" else folder / "pool",
            labelled=folder / "labelled.csv",
            count=arguments.each,
            by=None if order == "both" else order,
        )
        labelled = [*labelled, *(row["subject"] for row in rows)]


def write_round(
    arguments: argparse.Namespace,
    folder: Path,
    cases: dict[str, Case],
    labelled: list[str],
    seed: int,
) -> None:
    """Train on the labelled subjects, and score the test subjects."""
    rows = [
        (str(case.images[0].resolve()), str(case.label.resolve()), case.subject)
        for case in cases.values()
        if case.subject in labelled
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "labelled.csv", ["image", "label", "subject"], rows)
    count = len(set(labelled))
    resume = (folder / "run" / "settings.yaml").exists()
    selfvox.finetune(
        folder / "labelled.csv",
        out=folder / "run",
        encoder="none",
        steps=arguments.steps,
        labels=count,
        seed=seed,
        resume=resume,
        **TRAINING,
    )
    test = arguments.out / "test.txt"
    selfvox.predict(folder / "run", test, out=folder / "test", device="cpu", force=True)
    truth = folder / "truth"
    truth.mkdir(exist_ok=True)
    for path in (folder / "test").glob("*.nii.gz"):
        link = truth / path.name
        if not link.exists():
            link.symlink_to(cases[path.name.removesuffix(".nii.gz")].label.resolve())
    scores = selfvox.evaluate(folder / "test", truth)
    dice = float(np.mean([row["dice"] for row in scores]))
    write_text(folder / "round.json", json.dumps({"labels": count, "dice": dice}))
    print(f"{folder.name}: {count} labels, Dice {dice:.3f}", flush=True)


def predict_pool(arguments: argparse.Namespace, folder: Path) -> None:
    """Predict the pool by passes, once for all orders that ask for its trust."""
    if not (folder / "pool" / "review.csv").exists():
        selfvox.predict(
            folder / "run",
            arguments.out / "pool.txt",
            out=folder / "pool",
            passes=arguments.passes,
            device="cpu",
            force=True,
        )


def print_table(out: Path) -> tuple[float, list[list[Any]]]:
    """Mean Dice by order and round, and the differences to random; also as a table."""
    found: dict[tuple[str, int, int], float] = {}
    for file in out.glob("*/round.json"):
        order, seed, number = file.parent.name.split("_")
        found[order, int(seed), int(number)] = json.loads(file.read_text())["dice"]
    seeds = sorted({seed for _, seed, _ in found})
    rounds = sorted({number for _, _, number in found if number > 0})
    rows = []
    start = float(np.mean([found["start", seed, 0] for seed in seeds]))
    print(f"start: {start:.3f}, {len(seeds)} seeds")
    for order in ORDERS:
        for number in rounds:
            if not any((order, seed, number) in found for seed in seeds):
                continue
            both = [s for s in seeds if (order, s, number) in found]
            gains = [found[order, s, number] - found["random", s, number] for s in both]
            mean = float(np.mean([found[order, s, number] for s in both]))
            text = f"{order:9s} round {number}: {mean:.3f}"
            low = high = None
            if order != "random" and len(gains) > 1:
                error = stats.sem(gains)
                low, high = stats.t.interval(0.95, len(gains) - 1, np.mean(gains), error)
                text += f"  minus random {np.mean(gains):+.3f} ({low:+.3f} to {high:+.3f})"
            print(text)
            rows.append([order, number, len(both), mean, float(np.mean(gains)), low, high])
    header = ["order", "round", "seeds", "dice", "minus random", "low", "high"]
    with (out / "orders.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return start, rows


def draw_figure(start: float, rows: list[list[Any]], each: int, picture: Path) -> None:
    """Mean Dice of each order, and its difference to random with a 95 % interval."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    scores, differences = figure.subplots(1, 2)
    orders = list(dict.fromkeys(row[0] for row in rows))
    differences.axhline(0, color="#888888", linewidth=1)
    for place, (order, colour) in enumerate(zip(orders, COLOURS, strict=False)):
        of_order = [row for row in rows if row[0] == order]
        labels = [row[1] * each for row in of_order]
        means = [start, *(row[3] for row in of_order)]
        scores.plot([0, *labels], means, "o-", color=colour, label=order)
        if order == "random":
            continue
        # next to each other, so that no interval hides another
        shifted = [label + 0.25 * (place - len(orders) / 2) for label in labels]
        for x, (*_, gain, low, high) in zip(shifted, of_order, strict=True):
            differences.plot(x, gain, "o", color=colour)
            if low is not None:
                differences.plot([x, x], [low, high], color=colour)
    scores.set(title="Score", ylabel="mean Dice of the test subjects")
    differences.set(title=f"Difference to random, {rows[0][2]} seeds", ylabel="Dice, 95 % interval")
    for axes in (scores, differences):
        axes.set_xlabel("corrected scans")
        axes.set_xticks(sorted({0, *(row[1] * each for row in rows)}))
        axes.grid(alpha=0.3)
    scores.legend()
    save_figure(figure, picture, 110)


if __name__ == "__main__":
    main()
