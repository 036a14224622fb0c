"""Does a training need more and more memory? Thousands of small steps of `pretrain` on the CPU.

After every hundred steps: memory that the process has for itself, memory of the processes that read
for it, and its open files. Prints the slopes of the memory, fitted after the first fifth of the
steps, in which caches fill, and the numbers of open files.

    python benchmarks/memory_of_steps.py --steps 10000
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

EVERY = 100  # steps


def own_memory_mb(process: int | str) -> float:
    """Memory of a process that it shares with no other and with no file."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**10
    return 0.0


def readers() -> list[int]:
    """The processes that this one started."""
    threads = Path("/proc/self/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def main() -> None:
    """Train, and print the slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    rows: list[tuple[float, ...]] = []

    def measure(step: int, metrics: dict[str, float]) -> None:
        if step % EVERY == 0:
            memory = own_memory_mb("self")
            of_readers = sum(map(own_memory_mb, readers()))
            rows.append((step, memory, of_readers, len(os.listdir("/proc/self/fd"))))
            print(f"step {step}: {memory:.1f} MB, readers {of_readers:.1f} MB", flush=True)

    with tempfile.TemporaryDirectory() as name:
        train(Path(name), options.steps, measure)
    table = np.array(rows)
    table = table[table[:, 0] > options.steps / 5]
    for column, title in ((1, "training process"), (2, "processes that read")):
        slope, _ = np.polyfit(table[:, 0], table[:, column], 1)
        print(f"{title}: {1000 * slope:+.2f} MB in 1000 steps")
    print(f"open files: {int(table[:, 3].min())} to {int(table[:, 3].max())}")


def train(folder: Path, steps: int, measure) -> None:
    """Pre-train a tiny network on synthetic scans."""
    import selfvox
    from selfvox.data import phantom

    phantom.write(folder / "scans", kind="shapes", count=8)
    selfvox.prepare(folder / "scans", out=folder / "store", workers=1)
    selfvox.pretrain(
        folder / "store",
        out=folder / "run",
        task="rotation",
        network={"channels": [4, 8], "blocks": 1},
        crop=(16, 16, 16),
        batch=2,
        steps=steps,
        device="cpu",
        on_metrics=measure,
    )


if __name__ == "__main__":
    main()
