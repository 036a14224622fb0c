"""What Monte-Carlo dropout costs: many passes at once, compared with as many plain forward passes.

CPU time of one thread. Each round times the plain passes, ours, and the plain passes again; the
table has medians over the rounds. `A/A` is the ratio of the two runs of plain passes: outside 0.90
to 1.10 the machine was too busy and the row is void. Memory is the peak of a separate process.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.runs.device import make_fabric, supports_bf16
from selfvox.uncertainty import maps, vote_rules
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling
from selfvox.uncertainty.mc_dropout import Dropout
from selfvox.uncertainty.passes import SubNetworks, run_passes

WANTED = (5, 25, 50, 75, 95)
# where dropout is, window, arithmetic of ours: goal of ours over plain fp32 passes
GOALS = {
    ("everywhere", 64, "fp32"): 0.65,
    ("everywhere", 32, "fp32"): 0.30,
    ("decoder", 64, "fp32"): 0.55,
    ("decoder", 32, "fp32"): 0.30,
    ("decoder", 64, "bf16"): 0.30,
}
RATES = {"everywhere": (0.3, 0.3), "decoder": (0.0, 0.3)}


def network() -> Segmenter:
    """A U-Net of 8-16-32-64 channels, three classes."""
    torch.manual_seed(0)
    spec = plan_encoder({"name": "plain", "channels": [8, 16, 32, 64]}, (64,) * 3, (1.0,) * 3)
    return Segmenter(build_encoder(spec, 3, 1), 3).eval()


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def arithmetic(dtype: str) -> contextlib.AbstractContextManager[object]:
    """Autocast in bf16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def compare(
    site: str, edge: int, dtype: str, kind: str, passes: int, rounds: int
) -> tuple[float, float, float]:
    """Medians over the rounds: ours over plain passes, ours over our own cost model, and A/A."""
    net = network()
    image = torch.randn(1, edge, edge, edge)
    networks = SubNetworks(net, Dropout(*RATES[site], kind, 0))
    window = image.shape[1:]

    def plain() -> None:
        """What a loop does: one window, one pass at a time, its softmax summed up."""
        total = torch.zeros(3, *window)
        for _ in range(passes):
            total += net(image[None])[0].softmax(0)

    def ours() -> None:
        tally = VoteAccumulator(passes, ClassLabelling(3), window, (), torch.device("cpu"))
        with networks, arithmetic(dtype):
            run_passes(networks, image, window, 0.5, range(passes), tally.add)
        vote_rules.winner(tally.ballots)

    def model() -> float:
        """Seconds without sums: the shared part once, and T times the rest at the best batch."""
        with networks, arithmetic(dtype):
            shared = networks.shared(image[None])
            once = seconds(lambda: networks.shared(image[None]))
            pair = [seconds(lambda: networks.logits(shared, (0, 1), window)) for _ in range(5)]
        return once + passes / 2 * statistics.median(pair)

    with torch.inference_mode():
        plain()
        ours()
        times = [(seconds(plain), seconds(ours), model(), seconds(plain)) for _ in range(rounds)]
    ratio = statistics.median(2 * b / (a + d) for a, b, _, d in times)
    return (
        ratio,
        statistics.median(b / c for _, b, c, _ in times),
        statistics.median(a / d for a, _, _, d in times),
    )


def percentiles(passes: int, rounds: int) -> tuple[float, float, float]:
    """torch.quantile over ours, seconds of ours for a voxel-class, and A/A."""
    values = np.random.default_rng(0).integers(0, 256, (passes, 98_304)).astype(np.uint8)
    floats = torch.from_numpy(np.ascontiguousarray(values.T).astype(np.float32) / 255)
    quantiles = torch.tensor(WANTED) / 100
    times = []
    for _ in range(rounds + 1):
        theirs = seconds(lambda: torch.quantile(floats, quantiles, dim=1))
        mine = [seconds(lambda: maps.percentiles(values, WANTED)) for _ in range(2)]
        times.append((theirs, *mine))
    actual = maps.percentiles(values, WANTED) / 255
    assert np.abs(actual - torch.quantile(floats, quantiles, dim=1).numpy()).max() < 1e-5
    times = times[1:]
    return (
        statistics.median(theirs / first for theirs, first, _ in times),
        statistics.median(first for _, first, _ in times) / values.shape[1],
        statistics.median(first / second for _, first, second in times),
    )


def against_torch_uncertainty(
    passes: int, rounds: int
) -> tuple[float, float, float, float, float] | None:
    """Time and values next to torch-uncertainty's wrapper, with the same network and rates.

    Returns:
        The time of ours over that of its loop and over that of its batch; A/A of the loop; the root
        mean square over the voxels of z of the difference of mean probabilities (1 where they
        differ by chance); and the ratio of mean variances. None where it is not installed.
    """
    package = importlib.util.find_spec("torch_uncertainty")
    if package is None or not package.submodule_search_locations:
        return None
    # the one file, since the package needs much that has nothing to do with it
    file = Path(package.submodule_search_locations[0]) / "methods" / "mc_dropout.py"
    spec = importlib.util.spec_from_file_location("mc_dropout_of_torch_uncertainty", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    net = network()
    image = torch.randn(1, 32, 32, 32)
    dropping = copy.deepcopy(net)
    parents = [m for m in dropping.modules() if not isinstance(m, torch.nn.LeakyReLU)]
    for parent in parents:
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.LeakyReLU):
                setattr(
                    parent,
                    name,
                    torch.nn.Sequential(child, torch.nn.Dropout(RATES["everywhere"][0])),
                )
    networks = SubNetworks(net, Dropout(*RATES["everywhere"], "element", 0))

    def theirs(on_batch: bool) -> torch.Tensor:
        wrapped = module.mc_dropout(dropping, passes, on_batch=on_batch, task="segmentation").eval()
        probabilities: torch.Tensor = wrapped(image[None]).softmax(1)
        return probabilities

    def ours() -> torch.Tensor:
        probabilities = torch.empty(passes, 3, *image.shape[1:])
        with networks:
            run_passes(
                networks,
                image,
                image.shape[1:],
                0.5,
                range(passes),
                lambda number, space, planes: probabilities[number].copy_(planes),
            )
        return probabilities

    with torch.inference_mode():
        a, b = ours().double(), theirs(on_batch=False).double()
        z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / passes).sqrt()
        times = [
            (
                seconds(lambda: theirs(False)),
                seconds(ours),
                seconds(lambda: theirs(True)),
                seconds(lambda: theirs(False)),
            )
            for _ in range(rounds)
        ]
    return (
        statistics.median(2 * mine / (first + second) for first, mine, _, second in times),
        statistics.median(mine / batch for _, mine, batch, _ in times),
        statistics.median(first / second for first, _, _, second in times),
        float(z.square().mean().sqrt()),
        float(a.var(0).mean() / b.var(0).mean()),
    )


def growth(rounds: int) -> float:
    """Exponent of time over passes between 8 and 128, after the time of none."""
    net = network()
    image = torch.randn(1, 32, 32, 32)
    networks = SubNetworks(net, Dropout(0.0, 0.3, "element", 0))
    counts = (8, 16, 32, 64, 128)

    def ours(passes: int) -> float:
        tally = VoteAccumulator(passes, ClassLabelling(3), image.shape[1:], (), torch.device("cpu"))
        with networks:
            return seconds(
                lambda: run_passes(networks, image, image.shape[1:], 0.5, range(passes), tally.add)
            )

    with torch.inference_mode():
        ours(8)
        best = [min(ours(count) for _ in range(rounds)) for count in counts]
        with networks:
            once = min(seconds(lambda: networks.shared(image[None])) for _ in range(rounds))
    return float(np.polyfit(np.log(counts), np.log(np.array(best) - once), 1)[0])


def peak_mb(passes: int, edge: int, with_maps: bool) -> float:
    """Peak memory of a process that tallies this many made-up passes over a scan of this edge."""
    code = f"from mc_dropout import tallied; tallied({passes}, {edge}, {with_maps})"
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def tallied(passes: int, edge: int, with_maps: bool) -> None:
    """Sum up passes of a network that costs nothing, in the same windows and slabs; print the peak.

    The peak is in MB.
    """
    import tempfile

    class Cheap(SubNetworks):
        def shared(self, window: torch.Tensor) -> list[torch.Tensor]:
            return [window]

        def logits(self, shared: object, passes: object, size: object) -> torch.Tensor:
            x = shared[0]  # type: ignore[index]
            return torch.cat([x, -x, x * 0], 1).repeat(len(passes), 1, *[1] * len(size))  # type: ignore[arg-type]

    make_fabric("cpu", 1, "fp32")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        image = torch.randn(1, edge, edge, edge)
        networks = Cheap(network(), Dropout(0.3, 0.0, "element", 0))
        spill = Path(folder) / "passes" if with_maps else None
        tally = VoteAccumulator(
            passes, ClassLabelling(3), image.shape[1:], (), torch.device("cpu"), spill
        )
        run_passes(networks, image, (64,) * 3, 0.5, range(passes), tally.add)
        vote_rules.winner(tally.ballots)
        if with_maps:
            maps.percentile_maps(tally)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> int:
    """Print the tables; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--kind", default="element", choices=["element", "channel"])
    parser.add_argument(
        "--edge", type=int, default=128, help="of the scan whose memory is measured"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_fabric(
        "cpu", 1, "fp32"
    )  # keeps freed memory, as `predict` does; the plain passes gain by it too
    console = Console()
    missed = False
    table = Table(
        title=f"{arguments.passes} passes, {arguments.kind} dropout, U-Net 8-16-32-64, "
        "CPU time of one thread"
    )
    for column in (
        "dropout",
        "window",
        "arithmetic",
        "ours / plain",
        "goal",
        "ours / cost model",
        "A/A",
        "verdict",
    ):
        table.add_column(column)
    for (site, edge, dtype), goal in GOALS.items():
        if dtype == "bf16" and not supports_bf16("cpu"):
            console.print("this processor has no bf16 of its own: its row is left out")
            continue
        ratio, modelled, control = compare(
            site, edge, dtype, arguments.kind, arguments.passes, arguments.rounds
        )
        void = not 0.9 <= control <= 1.1
        met = ratio <= goal and modelled <= 1.1
        missed |= not void and not met
        verdict = "void" if void else "met" if met else "missed"
        cells = (f"{ratio:.3f}", f"{goal:.2f}", f"{modelled:.3f}", f"{control:.3f}", verdict)
        table.add_row(site, f"{edge}³", dtype, *cells)
    console.print(table)
    comparison = against_torch_uncertainty(32, arguments.rounds)
    if comparison is None:
        console.print("torch-uncertainty is not installed, so nothing is compared with it")
    else:
        loop, batch, control, z, spread = comparison
        console.print(
            f"32³, everywhere: ours / torch-uncertainty's loop {loop:.3f}, A/A {control:.3f}; "
            f"/ its batch {batch:.3f}; means differ by {z:.2f} standard errors (1: by chance), "
            f"variances {spread:.3f} of theirs"
        )
    speed, ours_s, control = percentiles(100, arguments.rounds)
    console.print(
        f"percentiles of 100 passes: torch.quantile / ours {speed:.1f} (goal 25), "
        f"{ours_s * 1e9:.0f} ns for each voxel and class, A/A {control:.3f}"
    )
    console.print(f"time over passes, exponent: {growth(arguments.rounds):.3f} (goal 1.02)")
    for with_maps in (False, True):
        single, hundred = (peak_mb(count, arguments.edge, with_maps) for count in (1, 100))
        limit = 1.3 * single + 256
        missed |= hundred > limit
        content = "votes and percentiles" if with_maps else "votes"
        console.print(
            f"peak memory at {arguments.edge}³, {content}: 1 pass {single:.0f} MB, "
            f"100 passes {hundred:.0f} (goal {limit:.0f})"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
