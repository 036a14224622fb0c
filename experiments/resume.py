"""Is a run that was killed and resumed identical to one that was not? Ten kills at random steps.

    python experiments/resume.py            # --task simclr, --kills 10, --precision bf16

Each run pre-trains on shapes for seconds. It gets SIGKILL when it has logged a randomly drawn
step, wherever it is then, and continues with `--resume`. Exit status 1 if the final weights of any
run differ by a bit.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import selfvox
from selfvox.data import phantom
from selfvox.runs.atomic_files import sha256
from selfvox.runs.run_folder import read_metrics

STEPS = 400
SAVE_EVERY = 25
LOG_EVERY = 10


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="rotation")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which to kill")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    table = Table(
        "run", "killed after step", "resumed from", "SHA-256 of encoder/weights.safetensors", ""
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        phantom.write(folder / "scans", "shapes", count=6)
        selfvox.prepare(folder / "scans", out=folder / "store", workers=1)
        subprocess.run(command(folder, "alone", arguments), check=True, stderr=subprocess.DEVNULL)
        expected = checksum(folder / "alone")
        table.add_row("left alone", "", "", expected, "")
        equal = []
        for number in range(1, arguments.kills + 1):
            name = f"killed {number}"
            step, saved = kill(
                folder, name, arguments, draw.randrange(LOG_EVERY, STEPS - 2 * LOG_EVERY)
            )
            subprocess.run(
                [*command(folder, name, arguments), "--resume"],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            actual = checksum(folder / name)
            equal.append(actual == expected)
            table.add_row(name, str(step), str(saved), actual, "equal" if equal[-1] else "DIFFERS")
    console = Console(width=130)
    console.print(table)
    console.print(f"{sum(equal)} of {len(equal)} equal")
    sys.exit(not all(equal))


def command(folder: Path, name: str, arguments: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    return [
        *(
            sys.executable,
            "-m",
            "selfvox",
            "pretrain",
            str(folder / "store"),
            "--out",
            str(folder / name),
        ),
        *("--task", arguments.task, "--precision", arguments.precision, "--device", "cpu"),
        *(
            "--steps",
            str(STEPS),
            "--save-every",
            str(SAVE_EVERY),
            "--batch",
            "2",
            "--crop",
            "16,16,16",
        ),
        *("--network.channels", "8,16,32"),
    ]


def kill(folder: Path, name: str, arguments: argparse.Namespace, step: int) -> tuple[int, int]:
    """Start a run and kill it soon after `step`.

    Returns:
        The last step it logged, and that of its newest checkpoint.
    """
    run = folder / name
    process = subprocess.Popen(command(folder, name, arguments), stderr=subprocess.DEVNULL)
    while not any(line["step"] >= step for line in read_metrics(run)):
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended by itself, with {process.returncode}")
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))  # anywhere within the next steps
    os.kill(process.pid, 9)
    if process.wait() != -9:
        raise RuntimeError(f"{name} ended before it was killed")
    saved = [int(record.stem.removeprefix("step-")) for record in run.glob("checkpoints/*.json")]
    return read_metrics(run)[-1]["step"], max(saved, default=0)


def checksum(run: Path) -> str:
    """That of the run's final weights."""
    return sha256(run / "encoder" / "weights.safetensors")


if __name__ == "__main__":
    main()
