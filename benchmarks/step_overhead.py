"""What a pre-training step costs in addition to its encoder: views, head, loss and optimiser.

CPU time of one thread. Each round times the bare encoder, the step, and the bare encoder again;
the table has medians over the rounds. `A/A` is the ratio of the two runs of the bare encoder:
outside 0.90 to 1.10 the machine was too busy and the row is void. Where the processor emulates
bf16, the encoder is so slow that goals say nothing and are not checked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.encoder import Encoder
from selfvox.runs.device import make_fabric, supports_bf16
from selfvox.tasks import task_from_setting

GOALS = {
    "rotation": 1.05,
    "relative_location": 1.05,
    "jigsaw": 1.05,
    "cpc": 1.10,
    # these have a decoder too, which costs twice as much as the encoder
    "masked": 3.20,
    "genesis": 3.20,
    "exemplar": 1.15,
    "simclr": 1.15,
}
SPACING_MM = (1.0, 1.0, 1.0)


def bare(
    encoder: Encoder, images: torch.Tensor, autocast: contextlib.AbstractContextManager[None]
) -> None:
    """Forward and backward of the encoder alone."""
    with autocast:
        coarsest = encoder(images)[-1]
    coarsest.float().square().mean().backward()
    encoder.zero_grad()


def measure(
    name: str, dtype: str, rounds: int, batch: int, edge: int
) -> tuple[float, float, float]:
    """Medians over the rounds: step over bare encoder, A/A, and seconds of the bare encoder."""
    torch.manual_seed(0)
    crop = (edge,) * 3
    task = task_from_setting(name).configure(crop, SPACING_MM)
    spec = plan_encoder({"name": "plain", "channels": [16, 32, 64, 128]}, crop, SPACING_MM)
    encoder = build_encoder(spec, 3, 1)
    head = task.head(encoder)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    images = torch.randn(batch, 1, *crop)
    rng = torch.Generator().manual_seed(0)
    views = next(
        value for value in task.make_batch(images, rng).values() if value.ndim == images.ndim
    )

    def autocast() -> contextlib.AbstractContextManager[None]:
        return (
            torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
        )

    def step() -> None:
        with autocast():
            outcome = task.loss(encoder, head, task.make_batch(images, rng))
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def seconds(work: Callable[[], None]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    def encode() -> None:
        bare(encoder, views, autocast())

    # the first round warms up
    times = [(seconds(encode), seconds(step), seconds(encode)) for _ in range(rounds + 1)][1:]
    ratio = statistics.median(2 * full / (before + after) for before, full, after in times)
    control = statistics.median(before / after for before, _, after in times)
    return ratio, control, statistics.median(before for before, _, _ in times)


def main() -> int:
    """Print the table; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument(
        "--only", default=f"{','.join(GOALS)}:fp32,bf16", help="tasks, then arithmetics"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_fabric("cpu", 1, "fp32")  # what is freed is kept, as in training
    tasks, arithmetics = (names.split(",") for names in arguments.only.split(":"))
    table = Table(
        title=f"{arguments.batch} x {arguments.edge}³ voxels, encoder plain 16-32-64-128, "
        "CPU time of one thread"
    )
    for column in (
        "task",
        "arithmetic",
        "bare encoder, s",
        "step / bare",
        "goal",
        "A/A",
        "verdict",
    ):
        table.add_column(column)
    missed = False
    for name in tasks:
        for dtype in arithmetics:
            ratio, control, encoder_s = measure(
                name, dtype, arguments.rounds, arguments.batch, arguments.edge
            )
            met = ratio <= GOALS[name]
            void = not 0.9 <= control <= 1.1
            emulated = dtype == "bf16" and not supports_bf16("cpu")
            missed |= not void and not emulated and not met
            verdict = "void" if void else "emulated" if emulated else "met" if met else "missed"
            table.add_row(
                name,
                dtype,
                f"{encoder_s:.2f}",
                f"{ratio:.3f}",
                f"{GOALS[name]:.2f}",
                f"{control:.3f}",
                verdict,
            )
    Console().print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
