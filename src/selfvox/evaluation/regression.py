"""Scores of predicted numbers of whole scans, compared with a constant guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.prediction.output_folder import TARGET_TABLE
from selfvox.prediction.read_predictions import warn_of_trained_scans
from selfvox.prediction.target_table import PredictedTarget, read_target_table
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Evaluate

DRAWS = 10_000  # of the bootstrap
INTERVAL = (2.5, 97.5)

Row = dict[str, Any]  # score, value, low, high


def evaluate_targets(settings: Evaluate) -> list[Row]:
    """Score a table of predicted numbers: one row for each score, with its 95 % interval.

    Raises:
        DataError: the table is damaged, or no scan has a target and a prediction.
    """
    table = read_target_table(settings.predictions / TARGET_TABLE)
    cases = find_dataset(settings.truth, settings.source).cases
    truth = {case.id: case.target for case in cases if case.target is not None}
    subjects = {case.id: case.subject for case in cases}
    if not truth:
        raise DataError(
            f"{settings.truth}: has no targets; name the table with the scans and their target"
        )
    common = sorted(truth.keys() & table.keys(), key=natural_key)
    if not common:
        raise DataError(
            f"{settings.predictions}: no prediction is called like a scan of {settings.truth} "
            f"(such as {printable(min(table))} and {printable(min(truth))}); name the table that "
            "the scans came from"
        )
    for reason, count in (
        ("predictions have no target", len(table) - len(common)),
        ("scans with a target have no prediction", len(truth) - len(common)),
    ):
        if count:
            echo(f"{count} {reason} and are left out")
    warn_of_trained_scans(settings.predictions, common)
    rows = score_targets(
        [table[case] for case in common],
        np.array([truth[case] for case in common]),
        [subjects[case] for case in common],
    )
    _print(rows)
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(settings.out, list(rows[0]), (row.values() for row in rows))
        echo(f"scores: {settings.out}")
    return rows


def score_targets(
    predicted: list[PredictedTarget], truth: np.ndarray, subjects: list[str]
) -> list[Row]:
    """All scores of predicted numbers; intervals by a bootstrap over subjects.

    Args:
        predicted: of each scan.
        truth: (scan,).
        subjects: of each scan.
    """
    numbers = np.array([row.target for row in predicted])
    errors = np.abs(numbers - truth)
    of_constant = np.abs(np.array([row.constant for row in predicted]) - truth)
    rows: list[Row] = [
        {"score": "cases", "value": len(truth), "low": None, "high": None},
        {"score": "subjects", "value": len(set(subjects)), "low": None, "high": None},
    ]
    measures = {
        "mean_absolute_error": errors,
        "error_of_a_constant": of_constant,
        # below 0: better than the constant
        "difference": errors - of_constant,
        "bias": numbers - truth,
    }
    if all(row.interval is not None for row in predicted):
        lows, highs = np.array([row.interval for row in predicted]).T
        measures["true_number_in_interval"] = ((lows <= truth) & (truth <= highs)).astype(float)
    for name, values in measures.items():
        low, high = _bootstrap(values, subjects)
        rows.append({"score": name, "value": float(values.mean()), "low": low, "high": high})
    if len(truth) > 2 and np.std(truth) > 0 and np.std(numbers) > 0:
        correlation = float(np.corrcoef(numbers, truth)[0, 1])
        rows.append({"score": "correlation", "value": correlation, "low": None, "high": None})
    return rows


def _bootstrap(values: np.ndarray, subjects: list[str]) -> tuple[float | None, float | None]:
    """95 % interval of the mean over scans, by drawing subjects; none of a single subject."""
    names, numbers = np.unique(subjects, return_inverse=True)
    if len(names) < 2:
        return None, None
    sums = np.bincount(numbers, weights=values)
    counts = np.bincount(numbers)
    drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def _print(rows: list[Row]) -> None:
    table = Table(box=SIMPLE)
    for heading in ("score", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for row in rows:
        interval = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
        table.add_row(row["score"].replace("_", " "), f"{row['value']:.4g}", interval)
    Console(highlight=False).print(table)
    values = {row["score"]: row for row in rows}
    high = values["difference"]["high"]
    if high is None or high >= 0:
        echo("not shown to be better than a constant, the median of the training targets")


def has_targets(folder: Path) -> bool:
    """Whether a folder of predictions has numbers of whole scans."""
    return (folder / TARGET_TABLE).is_file()
