"""How honest is a prediction's certainty? Probabilities against the truth by voxel, trust against Dice by scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selfvox.data.formats import image as images
from selfvox.errors import DataError
from selfvox.ops.boxes import bounding_box
from selfvox.ops.metrics import auc
from selfvox.ops.regions import Regions
from selfvox.prediction import output_folder
from selfvox.runs.atomic_files import atomic_write, write_csv
from selfvox.runs.progress import echo

BINS = 15  # of confidence (Guo et al. 2017)
MARGIN = (
    5  # voxels around what is predicted or true; air far away would make every network look honest
)
LEAST = 1e-7  # probability, in a logarithm
ADD_UP_WITHIN = 1e-2


def report_calibration(
    predictions: Path,
    pairs: Mapping[str, tuple[Path, Path]],
    values: Sequence[int],
    dice: Mapping[str, float],
    out: Path | None,
    regions: Regions | None = None,
) -> None:
    """Of predictions that lie with their probabilities: how honest these are, printed and, beside `out`, kept.

    Args:
        predictions: the folder that `predict` wrote; the trust in its scans is read from its `review.csv`.
        pairs: predicted and true class numbers by case.
        values: the class numbers in the order of the maps of probabilities.
        dice: by case; cases without one have no trust told of them.
        out: the table of scores; calibration goes to `NAME_calibration.csv` and `.png` beside it.
        regions: what the maps are of, where not of the classes; each is then measured beside the rest, and averaged.
    """
    found, table = {}, np.zeros((3, BINS))
    for name, (label, truth) in pairs.items():
        file = output_folder.probability_file(label)
        if not file.exists():
            continue
        try:
            grid = images.read_grid(label)
            probabilities = images.read_map(file, len(regions or values), grid)
            true = images.read_label(truth, grid, values)
        except DataError as error:
            echo(f"calibration leaves out {error}")
            continue
        if regions is not None:
            found[name], of_case = _measure_regions(probabilities, true, regions)
        elif np.abs(probabilities.sum(0) - 1).max() > ADD_UP_WITHIN:
            echo(
                f"calibration leaves out {file.name}: its maps are not those of the classes, which add up to 1"
            )
            continue
        else:
            found[name], of_case = measure_calibration(probabilities, np.searchsorted(values, true))
        table = table + of_case
    if not found:
        return
    overall = summary(list(found.values()), table)
    echo(
        "probabilities beside the truth: "
        + ", ".join(f"{name} {value:.3f}" for name, value in overall.items())
    )
    trust = {
        name: value
        for name, value in output_folder.read_trust(predictions).items()
        if name in found and name in dice
    }
    if len(trust) > 2:
        both = np.array([(trust[name], dice[name]) for name in sorted(trust)])
        if (both.std(0) > 0).all():
            related = f"correlation {np.corrcoef(both.T)[0, 1]:.2f}"
        else:
            related = "no correlation, since one of them is the same for all"
        echo(f"predicted and true Dice of {len(both)} scans: {related}")
    if out is not None:
        place = out.with_name(f"{out.stem}_calibration.csv")
        scores = [[name, *each.values()] for name, each in found.items()]
        write_csv(place, ["case", *next(iter(found.values()))], scores)
        draw(table, trust, dice, f"{len(found)} scans", place.with_suffix(".png"))
        echo(f"calibration: {place}   picture: {place.with_suffix('.png')}")


def measure_calibration(
    probabilities: np.ndarray, truth: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """Calibration of one scan, in the box around what is predicted or true.

    Args:
        probabilities: (class, *space), adding up to 1; class 0 is the background.
        truth: (*space), class indices.

    Returns:
        ece, brier, nll and error_area; and the table of `reliability`, which adds up over scans.
    """
    label = probabilities.argmax(0)
    box = _around((label > 0) | (truth > 0))
    p, t = (
        probabilities[(slice(None), *box)].reshape(len(probabilities), -1).astype(np.float64),
        truth[box].ravel(),
    )
    wrong = p.argmax(0) != t
    table = reliability(p, t)
    found = {
        "ece": expected_calibration_error(table),
        "brier": brier(p, t),
        "nll": negative_log_likelihood(p, t),
        # whether a wrong voxel is less certain than a right one: 0.5 says nothing of errors, 1 lies exactly on them
        "error_area": auc(wrong, -(p * np.log(np.clip(p, LEAST, None))).sum(0)),
    }
    return found, table


def _measure_regions(
    probabilities: np.ndarray, true: np.ndarray, regions: Regions
) -> tuple[dict[str, float], np.ndarray]:
    """As `measure`, of each region and its complement: the mean over the regions, and their joint table."""
    parts = [
        measure_calibration(
            np.stack([1 - of_region, of_region]), np.isin(true, members).astype(int)
        )
        for of_region, members in zip(probabilities, regions.values(), strict=True)
    ]
    table = np.sum([each for _, each in parts], 0)
    undefined = dict.fromkeys(parts[0][0], float("nan"))
    return undefined | summary([each for each, _ in parts], table), table


def reliability(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Voxels, summed confidence and right answers (3, bin) by the confidence of the most probable class.

    Args:
        p: (class, voxel).
        truth: (voxel,), class indices.
    """
    confidence, right = p.max(0), p.argmax(0) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, confidence, right)])


def expected_calibration_error(table: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their voxels (Guo et al. 2017, eq. 3)."""
    return float(np.abs(table[1] - table[2]).sum() / table[0].sum())


def brier(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance of the probabilities (class, voxel) to the truth's 0 and 1, summed over the classes."""
    of_truth = np.take_along_axis(p, truth[None], 0)[0]
    return float(((p**2).sum(0) - 2 * of_truth + 1).mean())


def negative_log_likelihood(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean of `-log` of the true class's probability, none taken for less than 1e-7."""
    return float(-np.log(np.clip(np.take_along_axis(p, truth[None], 0)[0], LEAST, None)).mean())


def risk_coverage(trust: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Mean `1 - Dice` of the most trusted 1, 2, ... scans: (scan,). Its mean is the area under the curve."""
    order = np.argsort(-trust, kind="stable")
    return np.cumsum(1 - dice[order]) / np.arange(1, len(order) + 1)


def draw(
    table: np.ndarray, trust: Mapping[str, float], dice: Mapping[str, float], title: str, out: Path
) -> None:  # fmt: skip
    """Draw the reliability diagram and, where scans have a trust, predicted against true Dice and risk by coverage."""
    both = sorted(trust.keys() & dice.keys())
    figure = Figure(figsize=(4.2 * (3 if len(both) > 1 else 1), 4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, 3 if len(both) > 1 else 1, squeeze=False)[0]
    held = table[0] > 0
    confidence, accuracy = table[1][held] / table[0][held], table[2][held] / table[0][held]
    panels[0].plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="honest")
    panels[0].scatter(confidence, accuracy, s=10 + 200 * table[0][held] / table[0].max(), alpha=0.6)
    panels[0].plot(confidence, accuracy, label="measured; area: voxels")
    panels[0].set(xlabel="confidence", ylabel="share of right voxels", xlim=(0, 1), ylim=(0, 1))
    if len(both) > 1:
        x, y = np.array([trust[name] for name in both]), np.array([dice[name] for name in both])
        panels[1].plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="equal")
        panels[1].scatter(x, y, s=14, label="scans")
        panels[1].set(xlabel="predicted Dice", ylabel="true Dice", xlim=(0, 1), ylim=(0, 1))
        share = np.arange(1, len(both) + 1) / len(both)
        panels[2].plot(share, risk_coverage(x, y), label="the most trusted first")
        panels[2].plot(share, risk_coverage(y, y), linestyle=":", label="the best first")
        panels[2].axhline(
            float((1 - y).mean()), color="black", linestyle="--", linewidth=1, label="in any order"
        )
        panels[2].set(xlabel="share of the scans kept", ylabel="mean of 1 - Dice", xlim=(0, 1))
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(loc="best", fontsize=8)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def summary(found: Sequence[Mapping[str, float]], table: np.ndarray) -> dict[str, Any]:
    """Over all scans: the error of the joint table, means of the others (of those that are defined)."""
    means = {
        name: float(np.nanmean([each[name] for each in found]))
        for name in ("brier", "nll", "error_area")
        if not all(np.isnan(each[name]) for each in found)
    }
    return {"ece": expected_calibration_error(table), **means}


def _around(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around a mask, with a margin; everything where the mask is empty."""
    if not mask.any():
        return tuple(slice(None) for _ in mask.shape)
    return bounding_box(mask, MARGIN)
