"""The tables of a study: means, paired differences, labels saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.errors import DataError
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.studies import figures
from selfvox.studies.compute import cost_ratio, costs
from selfvox.studies.convergence import late_change
from selfvox.studies.labels_saved import labels_saved
from selfvox.studies.plan import Plan
from selfvox.studies.print_tables import Row, print_comparison, print_notes, print_summary
from selfvox.studies.random_effects import MeanError, simultaneous
from selfvox.studies.results import (
    EQUAL_COMPUTE,
    Result,
    missing_cells,
    pairs_against,
    pairs_at_equal_compute,
    pairs_in_2d,
    read_results,
)
from selfvox.studies.statistics import compare, pair_runs

MINUS_2D = "3D minus 2D"
TITLES = {
    EQUAL_COMPUTE: "Minus the from-scratch baseline of equal compute: "
    "trained longer, by the cost of the pre-training",
    MINUS_2D: "3D minus 2D",
}
# columns of files
_RUN_COLUMNS = (
    "method",
    "labels",
    "validation_labels",
    "fraction",
    "seed",
    "pretrain_seed",
    "transductive",
)
_CASE_COLUMNS = ("fold", "case", "class", "name")
COMPARISON_COLUMNS = (
    "twin",
    "pairs",
    "twins",
    "difference",
    "difference_median",
    "wins",
    "low",
    "high",
    "low_simultaneous",
    "high_simultaneous",
    "low_familywise",
    "high_familywise",
    "error",
    "over",
    "labels_saved",
    "labels_saved_low",
    "labels_saved_high",
)
AGAINST_COLUMNS = ("method", "labels", "name", "score", "cost_ratio", *COMPARISON_COLUMNS)
Groups = Mapping[tuple[str, int], Sequence[Result]]


def make_tables(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Write `table.csv`, `summary.csv`, `comparisons.csv` and the figures; print the summary.

    Everything follows from the run folders.

    Returns:
        The rows of `summary.csv`.

    Raises:
        DataError: no cell is done yet.
    """
    results = read_results(plan, out)
    if not results:
        folds = " in all folds" if plan.folds else ""
        raise DataError(
            f"{out}: no cell is done yet{folds}; run `selfvox study PLAN --out {out}` first"
        )
    _write_scores(results, out / "table.csv")
    summary = summarise(results)
    write_csv(out / "summary.csv", list(summary[0]), (row.values() for row in summary))
    print_summary(summary, results)
    comparisons = {
        EQUAL_COMPUTE: compare_methods(results, pairs_at_equal_compute(plan, out)),
        MINUS_2D: compare_methods(results, pairs_in_2d(plan, out)),
    }
    titles = dict(TITLES)
    for reference in plan.against:
        kind = f"minus {reference}"
        titles[kind] = f"Minus {reference}"
        comparisons[kind] = compare_methods(results, pairs_against(plan, out, reference))
    lines = ([kind, *row.values()] for kind, rows in comparisons.items() for row in rows)
    write_csv(out / "comparisons.csv", ["comparison", *AGAINST_COLUMNS], lines)
    for kind, rows in comparisons.items():
        print_comparison(titles[kind], [row for row in rows if row["name"] == results[0].overall])
    print_notes(summary, results[0])
    pictures = figures.draw(plan, results, summary, comparisons, out / "figures")
    missing, total = missing_cells(plan, out)
    if missing:
        echo(
            f"{len(missing)} of {total} cells are missing ({missing[0]} first); "
            "run the study again to make them"
        )
        for cell in missing[1:]:
            if ": failed (" in cell:
                echo(f"missing: {cell}")
    tables = [out / f"{name}.csv" for name in ("table", "summary", "comparisons")]
    echo(f"tables: {'  '.join(map(str, tables))}   figures: {'  '.join(map(str, pictures))}")
    return summary


def _write_scores(results: Sequence[Result], path: Path) -> None:
    """Write every score of every run, with what the run took and how its curve ends."""
    scores = [name for name in results[0].rows[0] if name not in _CASE_COLUMNS]
    rows = []
    for result in results:
        run = {name: getattr(result, name) for name in _RUN_COLUMNS}
        run |= _convergence([result]) | costs([result])
        rows += [
            [*run.values(), *(row.get(name, "") for name in (*_CASE_COLUMNS, *scores))]
            for row in result.rows
        ]
    write_csv(path, [*run, *_CASE_COLUMNS, *scores], rows)


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per method, number of labels and class.

    Mean and standard deviation over the runs, and the difference to the twin.
    """
    groups = group_results(results)
    rows = []
    errors = []
    for (method, labels), group in groups.items():
        convergence = _convergence(group)
        cost = costs(group)
        for name in group[0].names():
            row = {
                "method": method,
                "labels": labels,
                "validation_labels": group[0].validation_labels,
                "fraction": group[0].fraction,
                "transductive": group[0].transductive,
                "name": name,
                "score": group[0].key,
                "runs": len(group),
                **convergence,
                **mean_and_sd([result.mean(name) for result in group]),
                **cost,
            }
            columns, error = _compared(groups, group, group[0].twin, name)
            twins = groups.get((group[0].twin or "", labels), [])
            rows.append(row | {"cost_ratio": cost_ratio(group, twins)} | columns)
            errors.append(error)
    _add_simultaneous(rows, errors)
    return rows


def _convergence(group: Sequence[Result]) -> dict[str, Any]:
    """How their curves end: of the mean of all runs, and in how many runs it still improved."""
    changes = [late_change([result]) for result in group]
    known = [change for change in changes if change is not None]
    rising = sum(change != 0 for change in known)
    return {"late_change": late_change(group), "rising": rising if known else None}


def compare_methods(
    results: Sequence[Result], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """How methods differ from others than their twin: one row per number of labels and class.

    Args:
        results: of all methods.
        pairs: names of a method and of the other; pairs without common runs are left out.
    """
    groups = group_results(results)
    rows = []
    errors = []
    for method, reference in pairs:
        for (name_of_group, labels), group in groups.items():
            if name_of_group != method or (reference, labels) not in groups:
                continue
            ratio = cost_ratio(group, groups[reference, labels])
            for name in group[0].names():
                row = {"method": method, "labels": labels, "name": name, "score": group[0].key}
                row["cost_ratio"] = ratio
                columns, error = _compared(groups, group, reference, name)
                if columns["twin"] is not None:
                    rows.append(row | columns)
                    errors.append(error)
    _add_simultaneous(rows, errors)
    return rows


def group_results(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """The runs of each method at each number of labels."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.method, result.labels), []).append(result)
    return groups


def mean_and_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation over runs; no deviation of a single run."""
    # ddof=1: the seeds are a sample
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def _compared(
    groups: Groups, group: Sequence[Result], twin: str | None, name: str
) -> tuple[dict[str, Any], MeanError | None]:
    """The columns of a method's difference to its twin, or another, and its error.

    The columns are empty where there is no difference.
    """
    labels = group[0].labels
    pairs = pair_runs(group, groups.get((twin or "", labels), []))
    comparison = compare(pairs, name) if pairs else None
    if comparison is None:
        return dict.fromkeys(COMPARISON_COLUMNS), None
    twins = {count: runs for (method, count), runs in groups.items() if method == twin}
    saved = labels_saved(group, twins, name)
    error = comparison.error
    columns = {
        "twin": twin,
        "pairs": len(comparison.by_run),
        "twins": len(comparison.by_twin),
        **comparison.columns(),
        "difference_median": float(np.median(comparison.by_run)),
        "wins": int((comparison.by_twin > 0).sum()),
        "low_simultaneous": None,
        "high_simultaneous": None,
        "low_familywise": None,
        "high_familywise": None,
        "error": error.error if error else None,
        "over": " ".join(error.over) if error else None,
        "labels_saved": str(saved),
        "labels_saved_low": saved.low,
        "labels_saved_high": saved.high,
    }
    return columns, error


def _add_simultaneous(rows: Sequence[dict[str, Any]], errors: Sequence[MeanError | None]) -> None:
    """Add the intervals that are right together, with 95 %.

    `simultaneous` ones at all numbers of labels of one method, `familywise` ones of all methods
    at all numbers of labels; each for one class, region or mean.
    """
    compared = [(row, error) for row, error in zip(rows, errors, strict=True) if error is not None]
    families: tuple[tuple[str, Callable[[Row], Hashable]], ...] = (
        ("simultaneous", lambda row: (row["method"], row["twin"], row["name"])),
        ("familywise", lambda row: row["name"]),
    )
    for suffix, family_of in families:
        counts = Counter(family_of(row) for row, _ in compared)
        for row, error in compared:
            confidence = simultaneous(counts[family_of(row)])
            low, high = error.interval(row["difference"], confidence)
            row[f"low_{suffix}"] = low
            row[f"high_{suffix}"] = high
