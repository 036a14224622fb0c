"""How long a training step takes with the weights of its convolutions channels last.

CPU time of one thread. Each round times the forward and backward pass in the usual layout, channels
last, and in the usual layout again; the table has medians over the rounds. `A/A` is the ratio of
the two runs of the usual layout: outside 0.90 to 1.10 the machine was too busy and the row is void.
On a CPU with AVX-512 the layout is not used, and the table says why.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from selfvox.models.build import build_encoder
from selfvox.models.segmenter import Segmenter

GOAL = 0.95  # of the time of the usual layout, with the norm of the default network
LEAST_AA, MOST_AA = 0.9, 1.1


def main() -> int:
    """Print the table; return 1 if a row of a CPU with AVX2 misses the goal or is void."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    table = Table("norm", "channels", "crop", "batch", "usual ms", "channels last", "A/A")
    failed = False
    for norm in ("group", "instance"):
        for channels, edge, batch in (((8, 16, 32, 64), 32, 2), ((16, 32, 64, 128), 32, 8)):
            usual, ratio, control = measure(norm, channels, edge, batch, rounds)
            is_void = not LEAST_AA < control < MOST_AA
            if capability == "AVX2":
                failed |= is_void or (norm == "group" and ratio > GOAL)
            text = "void" if is_void else f"{ratio:.2f}"
            widths = "-".join(map(str, channels))
            row = norm, widths, f"{edge}³", str(batch), f"{1000 * usual:.0f}", text
            table.add_row(*row, f"{control:.2f}")
    console = Console()
    console.print(f"processor: {capability}; the layout is used with AVX2")
    console.print(table)
    return int(failed)


def measure(
    norm: str, channels: tuple[int, ...], edge: int, batch: int, rounds: int
) -> tuple[float, float, float]:
    """Medians over the rounds: seconds of the usual layout, channels last over it, and A/A."""
    networks = []
    for layout in (torch.contiguous_format, torch.channels_last_3d, torch.contiguous_format):
        torch.manual_seed(0)
        strides = [[1, 1, 1], *[[2, 2, 2]] * (len(channels) - 1)]
        spec = {"name": "plain", "norm": norm, "channels": list(channels), "strides": strides}
        network = Segmenter(build_encoder(spec, 3, 1), 3, norm)
        networks.append(network.to(memory_format=layout))
    images = torch.randn(batch, 1, edge, edge, edge)
    for network in networks:
        step_seconds(network, images)
    seconds = [[step_seconds(network, images) for network in networks] for _ in range(rounds)]
    usual = statistics.median(before for before, _, _ in seconds)
    ratio = statistics.median(2 * new / (before + after) for before, new, after in seconds)
    control = statistics.median(after / before for before, _, after in seconds)
    return usual, ratio, control


def step_seconds(network: Segmenter, images: torch.Tensor) -> float:
    """CPU seconds of a forward and a backward pass."""
    start = time.process_time()
    network(images).square().mean().backward()
    network.zero_grad()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
