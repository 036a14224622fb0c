"""Whether labels saved are right in simulated studies: their sign, and how often the interval is.

    python experiments/labels_saved.py

The twin's Dice rises with the logarithm of the labels; the method is worth `FACTOR` times as many
labels as it gets, so it saves `(FACTOR - 1) * labels`; with 1 it has no effect. Method and twin
share draws and subjects. A number beyond the curve counts by its sign.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from selfvox.runs.run_folder import METRICS
from selfvox.studies.labels_saved import labels_saved
from selfvox.studies.results import Result

COUNTS = (5, 10, 20, 40)
FACTORS = (1.0, 1.5)
SLOPE = 0.03  # Dice by the logarithm of the labels
SUBJECTS = 40
STUDIES = 400
# standard deviations in Dice: draw, run, subject, subject of a run
DRAW, RUN, SUBJECT, RESIDUAL = 0.01, 0.01, 0.05, 0.03


def run_of(folder: Path, method: str, labels: int, seed: int, scores: np.ndarray) -> Result:
    """A run with a Dice for each subject; `folder` has its metrics."""
    rows = tuple(
        {"case": str(case), "class": "1", "name": "all", "dice": str(score)}
        for case, score in enumerate(scores)
    )
    return Result(
        paths=(folder,),
        method=method,
        twin=None,
        labels=labels,
        fraction=labels / 100,
        seed=seed,
        pretrain_seed=None,
        transductive=False,
        slices=None,
        key="dice",
        rows=rows,
    )


def simulate(
    rng: np.random.Generator, folder: Path, draws: int, factor: float
) -> tuple[dict[int, list[Result]], dict[int, list[Result]]]:
    """The runs of the method and of the twin, by number of labels."""
    of_subject = SUBJECT * rng.normal(size=SUBJECTS)
    runs: dict[str, dict[int, list[Result]]] = {"method": {}, "twin": {}}
    for labels in COUNTS:
        of_draw = DRAW * rng.normal(size=draws)
        for method, worth in (("method", factor * labels), ("twin", labels)):
            runs[method][labels] = []
            for seed in range(draws):
                mean = 0.7 + SLOPE * math.log(worth) + of_draw[seed] + RUN * rng.normal()
                scores = mean + of_subject + RESIDUAL * rng.normal(size=SUBJECTS)
                runs[method][labels].append(run_of(folder, method, labels, seed, scores))
    return runs["method"], runs["twin"]


def main() -> None:
    """Print a line for each number of draws and labels."""
    with tempfile.TemporaryDirectory() as folder:
        # of a run that has converged
        (Path(folder) / METRICS).write_text('{"step": 1, "loss": 1, "dice_mean": 0.5}\n')
        simulate_studies(Path(folder))


def simulate_studies(folder: Path) -> None:
    """Simulate all studies; `folder` has the metrics of their runs."""
    rng = np.random.default_rng(0)
    for factor in FACTORS:
        for draws in (3, 5, 10):
            signs: dict[int, list[float]] = {labels: [] for labels in COUNTS}
            right = dict.fromkeys(COUNTS, 0)
            numbers: dict[int, list[float]] = {labels: [] for labels in COUNTS}
            for _ in range(STUDIES):
                method, twin = simulate(rng, folder, draws, factor)
                for labels in COUNTS:
                    saved = labels_saved(method[labels], twin, "all")
                    true = (factor - 1) * labels
                    low = -math.inf if saved.low is None else saved.low
                    high = math.inf if saved.high is None else saved.high
                    right[labels] += low <= true + 1e-9 and high >= true - 1e-9
                    signs[labels].append(float(np.sign(saved.estimate)))
                    numbers[labels].append(saved.estimate)
            for labels in COUNTS:
                print(
                    f"worth {factor} x, {draws} draws, {labels} labels: "
                    f"{np.mean(np.array(signs[labels]) > 0):.2f} above 0, "
                    f"median {np.median(numbers[labels]):+.1f}, "
                    f"{np.mean(np.isinf(numbers[labels])):.2f} beyond the curve, "
                    f"interval right in {right[labels] / STUDIES:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
