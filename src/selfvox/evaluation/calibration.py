"""Calibration: probabilities against the truth by voxel, trust against Dice by scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from selfvox.data.formats import image as images
from selfvox.errors import DataError
from selfvox.evaluation.pairs import LabelPair
from selfvox.ops.boxes import bounding_box
from selfvox.ops.metrics import auc
from selfvox.ops.regions import Regions
from selfvox.plotting import save_figure
from selfvox.prediction import read_predictions
from selfvox.prediction.case_files import probability_file
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo

BINS = 15  # of confidence (Guo et al. 2017)
# voxels around what is true; air far away would make every network look honest
MARGIN = 5
LEAST = 1e-7  # probability, in a logarithm
Box = tuple[slice, ...]
SUM_TOLERANCE = 1e-2  # of the probabilities of all classes
MIN_RELATED = 3  # scans for a correlation; that of two is always 1 or -1


# scores of one scan, from (class, voxel) probabilities and (voxel,) class indices


def brier(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance of probabilities (class, voxel) to 0 and 1, summed over classes."""
    of_truth = np.take_along_axis(p, truth[None], 0)[0]
    # sum (p - t)² over the classes, without an array of 0 and 1
    return float(((p**2).sum(0) - 2 * of_truth + 1).mean())


def negative_log_likelihood(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean of `-log` of the true class's probability, none taken for less than 1e-7."""
    of_truth = np.take_along_axis(p, truth[None], 0)[0]
    return float(-np.log(np.clip(of_truth, LEAST, None)).mean())


def error_area(p: np.ndarray, truth: np.ndarray) -> float:
    """How often a wrong voxel has a larger entropy than a right one.

    0.5 by chance, 1 if always; nan without right or without wrong voxels.
    """
    wrong = p.argmax(0) != truth
    entropy = -(p * np.log(np.clip(p, LEAST, None))).sum(0)
    return auc(wrong, entropy)


def reliability(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Voxels, summed confidence and right predictions (3, bin), by confidence.

    Args:
        p: (class, voxel).
        truth: (voxel,), class indices.
    """
    confidence = p.max(0)
    right = p.argmax(0) == truth
    # a confidence of 1 belongs to the last bin
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, confidence, right)])


def expected_calibration_error(table: np.ndarray) -> float:
    """Mean gap between confidence and accuracy (Guo et al. 2017, eq. 3).

    A bin counts by its voxels.
    """
    voxels, confidence, right = table
    return float(np.abs(confidence - right).sum() / voxels.sum())


# Scores of a scan, each averaged over the scans.
VOXEL_SCORES = {
    "ece": lambda p, truth: expected_calibration_error(reliability(p, truth)),
    "brier": brier,
    "nll": negative_log_likelihood,
    "error_area": error_area,
}
SCORE_NAMES = tuple(VOXEL_SCORES)


def measure_calibration(
    probabilities: np.ndarray, truth: np.ndarray, box: Box | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Calibration of one scan, in the box around what is true.

    The box does not depend on the prediction, so it is the same for all predictions of a scan:
    false voxels far away would add air to it, where every network is right and certain.

    Args:
        probabilities: (class, *space), adding up to 1; class 0 is the background.
        truth: (*space), class indices.
        box: where to measure; default: around all classes but the background.

    Returns:
        The scores by name; and the table of `reliability`, which adds up over scans.
    """
    box = box or _box_around(truth > 0)
    in_box = probabilities[(slice(None), *box)]
    # float64: sums over millions of voxels
    p = in_box.reshape(len(probabilities), -1).astype(np.float64)
    t = truth[box].ravel()
    return {name: score(p, t) for name, score in VOXEL_SCORES.items()}, reliability(p, t)


def _measure_regions(
    probabilities: np.ndarray, truth: np.ndarray, regions: Regions
) -> tuple[dict[str, float], np.ndarray]:
    """Calibration of one scan: the mean over each region with its complement, in one box.

    Returns the scores and the joint table of `reliability`.
    """
    box = _box_around(truth > 0)
    scores = []
    tables = []
    for region, members in zip(probabilities, regions.values(), strict=True):
        with_complement = np.stack([1 - region, region])
        is_member = np.isin(truth, members).astype(int)
        of_region, table = measure_calibration(with_complement, is_member, box)
        scores.append(of_region)
        tables.append(table)
    return {name: mean for name, (mean, _) in summary(scores).items()}, np.sum(tables, 0)


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean of each score over the scans where it is defined, and how far it may be off.

    Returns:
        By name the mean, nan where it is defined nowhere, and half of its 95 % interval by
        Student's t, nan where it is defined in fewer than two scans.
    """
    means = {}
    for name in SCORE_NAMES:
        values = np.array([of_scan[name] for of_scan in scores])
        values = values[~np.isnan(values)]
        mean = float(values.mean()) if len(values) else np.nan
        reach = np.nan
        if len(values) > 1:
            reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        means[name] = (mean, reach)
    return means


def risk_coverage(trust: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Mean `1 - Dice` (scan,) of the most trusted 1, 2, ... scans."""
    # stable: scans of equal trust keep their order on every machine
    order = np.argsort(-trust, kind="stable")
    return np.cumsum(1 - dice[order]) / np.arange(1, len(order) + 1)


# the report


def report_calibration(
    predictions: Path,
    pairs: Mapping[str, LabelPair],
    values: Sequence[int],
    dice: Mapping[str, float],
    out: Path | None,
    regions: Regions | None = None,
) -> None:
    """Print how honest predictions with probabilities are, and write it next to `out`.

    Args:
        predictions: the folder that `predict` wrote; the trust in its scans is read from its
            `review.csv`.
        pairs: predicted and true labels by case.
        values: the class numbers in the order of the probabilities.
        dice: by case; for cases without one, nothing is said about their trust.
        out: the table of scores; calibration is written to `NAME_calibration.csv` and `.png` next
            to it.
        regions: what the probabilities are of, where not of the classes; each is measured with its
            complement.
    """
    scores: dict[str, dict[str, float]] = {}
    table = np.zeros((3, BINS))
    for case, pair in pairs.items():
        if not probability_file(pair.prediction).exists():
            continue
        try:
            scores[case], of_case = measure_case(pair, values, regions)
        except DataError as error:
            echo(f"calibration leaves out {error}")
            continue
        table = table + of_case
    if not scores:
        return
    listed = ", ".join(
        _with_interval(name, mean, reach)
        for name, (mean, reach) in summary(list(scores.values())).items()
        if not np.isnan(mean)
    )
    echo(f"probabilities against the truth: {listed}")
    trust = {
        case: value
        for case, value in read_predictions.read_trust(predictions).items()
        if case in scores and case in dice
    }
    if len(trust) >= MIN_RELATED:
        _echo_correlation(trust, dice)
    if out is not None:
        place = out.with_name(f"{out.stem}_calibration.csv")
        picture = place.with_suffix(".png")
        rows = [[case, *of_case.values()] for case, of_case in scores.items()]
        write_csv(place, ["case", *SCORE_NAMES], rows)
        draw_calibration(table, trust, dice, f"{len(scores)} scans", picture)
        echo(f"calibration: {place}   picture: {picture}")


def _with_interval(name: str, mean: float, reach: float) -> str:
    """A mean with its 95 % interval over the scans, without it where there is one scan."""
    interval = "" if np.isnan(reach) else f" ({mean - reach:.3f} to {mean + reach:.3f})"
    return f"{name} {mean:.3f}{interval}"


def measure_case(
    pair: LabelPair, values: Sequence[int], regions: Regions | None
) -> tuple[dict[str, float], np.ndarray]:
    """Calibration of one case with a file of probabilities: its scores and `reliability`.

    Args:
        pair: predicted and true label; the probabilities are next to the prediction.
        values: the class numbers in the order of the probabilities.
        regions: what the probabilities are of, where not of the classes.

    Raises:
        DataError: a file cannot be used, or its maps are no probabilities of the classes.
    """
    file = probability_file(pair.prediction)
    grid = images.read_grid(pair.prediction)
    probabilities = images.read_map(file, len(regions or values), grid)
    truth = images.read_label(pair.truth, grid, values)
    if regions is not None:
        return _measure_regions(probabilities, truth, regions)
    if np.abs(probabilities.sum(0) - 1).max() > SUM_TOLERANCE:
        raise DataError(
            f"{file.name}: its maps are not those of the classes, which add up to 1; "
            "predict it again"
        )
    return measure_calibration(probabilities, np.searchsorted(values, truth))


def _echo_correlation(trust: Mapping[str, float], dice: Mapping[str, float]) -> None:
    columns = np.array([(trust[case], dice[case]) for case in sorted(trust)])
    if (columns.std(0) > 0).all():
        text = f"correlation {np.corrcoef(columns.T)[0, 1]:.2f}"
    else:
        text = "no correlation, since one of them is the same for all"
    echo(f"trust and true Dice of {len(columns)} scans: {text}")


def draw_calibration(
    table: np.ndarray, trust: Mapping[str, float], dice: Mapping[str, float], title: str, out: Path
) -> None:  # fmt: skip
    """Draw the reliability diagram, and trust against Dice where scans have a trust."""
    cases = sorted(trust.keys() & dice.keys())
    count = 3 if len(cases) > 1 else 1
    figure = Figure(figsize=(4.2 * count, 4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, count, squeeze=False)[0]
    _draw_reliability(panels[0], table)
    if len(cases) > 1:
        predicted = np.array([trust[case] for case in cases])
        true = np.array([dice[case] for case in cases])
        _draw_trust(panels[1], predicted, true)
        _draw_risk(panels[2], predicted, true)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(loc="best", fontsize=8)
    save_figure(figure, out, dpi=100)


_REFERENCE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


def _draw_reliability(axes: Axes, table: np.ndarray) -> None:
    voxels, confidence, right = table[:, table[0] > 0]
    x = confidence / voxels
    y = right / voxels
    axes.plot([0, 1], [0, 1], **_REFERENCE, label="honest")
    axes.scatter(x, y, s=10 + 200 * voxels / voxels.max(), alpha=0.6)
    axes.plot(x, y, label="measured; area: voxels")
    axes.set(xlabel="confidence", ylabel="share of right voxels", xlim=(0, 1), ylim=(0, 1))


def _draw_trust(axes: Axes, trust: np.ndarray, dice: np.ndarray) -> None:
    axes.plot([0, 1], [0, 1], **_REFERENCE, label="equal")
    axes.scatter(trust, dice, s=14, label="scans")
    axes.set(xlabel="trust: agreement of the passes", ylabel="true Dice", xlim=(0, 1), ylim=(0, 1))


def _draw_risk(axes: Axes, trust: np.ndarray, dice: np.ndarray) -> None:
    share = np.arange(1, len(dice) + 1) / len(dice)
    axes.plot(share, risk_coverage(trust, dice), label="the most trusted first")
    axes.plot(share, risk_coverage(dice, dice), linestyle=":", label="the best first")
    axes.axhline(float((1 - dice).mean()), **_REFERENCE, label="in any order")
    axes.set(xlabel="share of the scans kept", ylabel="mean of 1 - Dice", xlim=(0, 1))


def _box_around(mask: np.ndarray) -> Box:
    """The box around a mask, with a margin; everything where the mask is empty."""
    if not mask.any():
        return tuple(slice(None) for _ in mask.shape)
    return bounding_box(mask, MARGIN)
