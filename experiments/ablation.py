"""What each part of the fine-tuning recipe changes, measured on validation subjects.

    python experiments/ablation.py OUT oasis=DATA hippocampus=DATA --labels 1 --seeds 0,2,3 \
        --arm "light: --augment light" --arm "strong: --augment strong"

Each data set is prepared once, with fixed test and validation subjects. An arm is a name and
options of `selfvox finetune`; `{data}` in them stands for the name of the data set. Every arm
trains with every seed, which also draws the labelled subjects, and keeps its last weights, so that
validation chooses nothing inside a run and its score is comparable between arms. Test subjects are
never read.
A second call continues where the first one stopped and prints the table of all arms in OUT.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

# subjects held out for testing and for validation, by the name of the data set
HELD_OUT = {"oasis": (10, 5), "hippocampus": (60, 20), "sarcoma": (15, 8), "idrid": (135, 70)}
COLUMNS = ("data", "labels", "arm", "draw", "score", "classes", "cpu_seconds", "options")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="*", help="NAME=FOLDER")
    parser.add_argument("--labels", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2", help="each draws other labelled subjects")
    parser.add_argument("--arm", action="append", default=[], help="NAME: OPTIONS of finetune")
    arguments = parser.parse_args()
    # all arms of a seed first: an early table is balanced
    for draw in map(int, arguments.seeds.split(",")):
        for entry in arguments.data:
            name, folder = entry.split("=", 1)
            store = prepare(arguments.out, name, Path(folder))
            for arm in arguments.arm:
                run(arguments.out, name, store, arm, arguments.labels, draw)
    print_table(arguments.out)


def prepare(out: Path, name: str, folder: Path) -> Path:
    """The data set's store, with its fixed split."""
    store = out / name / "store"
    if not store.exists():
        test, validation = HELD_OUT[name]
        command = ["prepare", str(folder), "--out", str(store), "--workers", "1"]
        selfvox([*command, "--test", str(test), "--validation", str(validation)])
    return store


def run(out: Path, name: str, store: Path, arm: str, labels: int, draw: int) -> None:
    """Fine-tune once and note the score of the last weights, unless that was done before."""
    label, options = (part.strip() for part in arm.split(":", 1))
    folder = out / name / f"{label.replace(' ', '-')}_{labels}_{draw}"
    row_file = folder / "row.json"
    if row_file.exists():
        return
    command = ["finetune", str(store), "--out", str(folder), "--labels", str(labels)]
    command += ["--seed", str(draw), "--keep", "last", "--validate-every", "1000000"]
    command += shlex.split(options.replace("{data}", name))
    if "--encoder" not in command:
        command += ["--encoder", "none"]
    seconds = selfvox(command)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = lines[-1]  # of the last step, with its validation
    score = metrics["dice_mean"] if "dice_mean" in metrics else metrics["kappa"]
    values = (name, labels, label, draw, score, metrics, round(seconds), options)
    row_file.write_text(json.dumps(dict(zip(COLUMNS, values, strict=True))))
    print(f"{name} {label} draw {draw}: {score:.3f}, {seconds:.0f} s", flush=True)


def selfvox(command: list[str]) -> float:
    """Run a command to its end; return its CPU seconds."""
    before = _children_seconds()
    subprocess.run([sys.executable, "-m", "selfvox", *command], check=True, stdout=sys.stderr)
    return _children_seconds() - before


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_table(out: Path) -> None:
    """Mean score of each arm, and its mean difference to the first arm on the same draws."""
    rows = [json.loads(file.read_text()) for file in sorted(out.glob("*/*/row.json"))]
    with (out / "ablation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    groups: dict[tuple[str, int], dict[str, dict[int, dict]]] = {}
    for row in sorted(rows, key=lambda row: row["draw"]):
        arms = groups.setdefault((row["data"], row["labels"]), {})
        arms.setdefault(row["arm"], {})[row["draw"]] = row
    for (data, labels), arms in groups.items():
        print(f"\n{data}, {labels} labels")
        best = max(arms, key=lambda arm: len(arms[arm]))
        reference = "old" if "old" in arms else best
        for arm, draws in arms.items():
            scores = [row["score"] for row in draws.values()]
            shared = [draw for draw in draws if draw in arms[reference]]
            gains = [draws[d]["score"] - arms[reference][d]["score"] for d in shared]
            cpu = np.mean([row["cpu_seconds"] for row in draws.values()])
            gain = f"{np.mean(gains):+.3f} to {reference}" if gains else ""
            wins = sum(value > 0 for value in gains)
            print(
                f"  {arm:28s} {np.mean(scores):.3f}  n={len(scores)}  {gain} "
                f"({wins} of {len(gains)})  {cpu:.0f} s"
            )


if __name__ == "__main__":
    main()
