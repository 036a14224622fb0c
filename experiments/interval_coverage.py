"""How often a study's 95 % interval contains the true difference, over simulated studies.

    python experiments/interval_coverage.py

Every simulated study has differences between a method and its twin for each pre-training, draw
of labels and test subject: random effects of all three, of each pair of them (a draw's twin is
shared by its pre-trainings, so that draw and subject go together) and of each single score. The
true difference is 0. With one pre-training the effect of the pre-training is left out: the
interval is about this one, and says so.
"""

from __future__ import annotations

import argparse

import numpy as np

from selfvox.studies.random_effects import error_of_mean, simultaneous

DRAWS = (3, 5, 10)
SUBJECTS = (12, 40, 85)
# standard deviations in Dice: pre-training, draw, subject; pre-training x draw, pre-training x
# subject, draw x subject; residual
HIPPOCAMPUS = (0.006, 0.012, 0.015, 0.006, 0.006, 0.015, 0.02)
SCENARIOS = {
    "like hippocampus": HIPPOCAMPUS,
    "draws differ most": (0.003, 0.02, 0.005, 0.0, 0.0, 0.01, 0.02),
    "subjects differ most": (0.003, 0.004, 0.03, 0.0, 0.0, 0.01, 0.02),
    "pre-trainings differ most": (0.02, 0.01, 0.01, 0.0, 0.0, 0.0, 0.02),
    "residual only": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.02),
}
COUNTS = 4  # of labels, in the simultaneous interval


def simulate(
    rng: np.random.Generator, shape: tuple[int, int, int], deviations: tuple[float, ...]
) -> np.ndarray:
    """Differences of one study (pre-training, draw, subject), whose true mean is 0."""
    pretrainings, draws, subjects = shape
    if pretrainings == 1:  # the interval is about this one
        deviations = (0.0, *deviations[1:4], 0.0, *deviations[5:])
    shapes = [
        (pretrainings, 1, 1),
        (1, draws, 1),
        (1, 1, subjects),
        (pretrainings, draws, 1),
        (pretrainings, 1, subjects),
        (1, draws, subjects),
        shape,
    ]
    effects = np.zeros(shape)
    for deviation, axes in zip(deviations, shapes, strict=True):
        effects = effects + deviation * rng.normal(size=axes)
    return effects


def coverage(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    deviations: tuple[float, ...],
    studies: int,
    counts: int = 1,
) -> float:
    """In which share of the studies the intervals at all numbers of labels contain 0.

    Args:
        rng: draws the studies.
        shape: pre-trainings, draws and subjects.
        deviations: of the effects.
        studies: how many.
        counts: numbers of labels, each with a simultaneous interval; they share no effects.
    """
    right = 0
    for _ in range(studies):
        confidences = []
        for _ in range(counts):
            differences = simulate(rng, shape, deviations)
            error = error_of_mean(differences)
            assert error is not None
            confidences.append(error.confidence_at(float(differences.mean())))
        right += max(confidences) <= simultaneous(counts)
    return right / studies


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--pretrainings", type=int, nargs="+", default=[1, 2, 3, 5])
    studies = parser.parse_args().studies
    pretrainings = parser.parse_args().pretrainings
    rng = np.random.default_rng(0)
    print("draws x subjects: " + "  ".join(f"{s}x{c}" for s in DRAWS for c in SUBJECTS))
    for name, deviations in SCENARIOS.items():
        for count in pretrainings:
            shapes = [(count, draws, subjects) for draws in DRAWS for subjects in SUBJECTS]
            rows = {"interval": [coverage(rng, shape, deviations, studies) for shape in shapes]}
            rows[f"simultaneous, {COUNTS} counts"] = [
                coverage(rng, shape, deviations, studies, COUNTS) for shape in shapes
            ]
            for kind, values in rows.items():
                text = "  ".join(f"{value:.3f}" for value in values)
                print(f"{name}, {count} pre-training(s), {kind}: {text}", flush=True)


if __name__ == "__main__":
    main()
