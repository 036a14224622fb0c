"""The tables of a study: means, paired differences, labels saved; as files and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.errors import DataError
from selfvox.evaluation.segmentation import EMPTY_RULE
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.studies import figures
from selfvox.studies.convergence import late_change
from selfvox.studies.labels_saved import labels_saved
from selfvox.studies.plan import Plan
from selfvox.studies.random_effects import FACTORS, MeanError, simultaneous
from selfvox.studies.results import (
    Result,
    missing_cells,
    pairs_at_equal_compute,
    pairs_in_2d,
    read_results,
)
from selfvox.studies.statistics import compare, pair_runs

WIDTH = 200  # columns that a row needs
EQUAL_COMPUTE = "equal compute"
MINUS_2D = "3D minus 2D"
TITLES = {
    EQUAL_COMPUTE: "Minus the from-scratch twin at equal compute: "
    "trained longer, by the cost of the pre-training",
    MINUS_2D: "3D minus 2D",
}
# columns of files
_RUN_COLUMNS = ("method", "labels", "fraction", "seed", "pretrain_seed", "transductive")
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
    "error",
    "df",
    "over",
    "labels_saved",
    "labels_saved_low",
    "labels_saved_high",
)
AGAINST_COLUMNS = ("method", "labels", "name", "score", *COMPARISON_COLUMNS)
Groups = Mapping[tuple[str, int], Sequence[Result]]
Row = Mapping[str, Any]


class _Column(NamedTuple):
    """A printed column of a comparison."""

    heading: str
    text: Callable[[Row], str]


def interval_text(low: float | None, high: float | None) -> str:
    """An interval, or a dash where there is none."""
    return "-" if low is None or high is None else f"{low:+.3f} ... {high:+.3f}"


def _saved_text(row: Row) -> str:
    """Labels saved with their interval, whose open ends have the words less and more."""
    saved = str(row["labels_saved"])
    low = row["labels_saved_low"]
    high = row["labels_saved_high"]
    if saved.startswith("unknown") or row["low"] is None:
        return saved.partition(":")[0]
    ends = ["less" if low is None else f"{low:+.0f}", "more" if high is None else f"{high:+.0f}"]
    return f"{saved} ({' ... '.join(ends)})"


_DIFFERENCE = (
    _Column("mean", lambda row: f"{row['difference']:+.3f}"),
    _Column("95 %", lambda row: interval_text(row["low"], row["high"])),
    _Column(
        "95 %, all labels",
        lambda row: interval_text(row["low_simultaneous"], row["high_simultaneous"]),
    ),
    _Column("median", lambda row: f"{row['difference_median']:+.3f}"),
    _Column("wins", lambda row: f"{row['wins']} of {row['twins']}"),
    _Column("labels saved", _saved_text),
)


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
    _print_summary(summary, results)
    comparisons = {
        EQUAL_COMPUTE: compare_methods(results, pairs_at_equal_compute(plan, out)),
        MINUS_2D: compare_methods(results, pairs_in_2d(plan, out)),
    }
    lines = ([kind, *row.values()] for kind, rows in comparisons.items() for row in rows)
    write_csv(out / "comparisons.csv", ["comparison", *AGAINST_COLUMNS], lines)
    for kind, rows in comparisons.items():
        _print_comparison(kind, [row for row in rows if row["name"] == results[0].overall])
    pictures = figures.draw(plan, results, summary, comparisons, out / "figures")
    missing, total = missing_cells(plan, out)
    if missing:
        echo(
            f"{len(missing)} of {total} cells are missing ({missing[0]} first); "
            "run the study again to make them"
        )
    tables = [out / f"{name}.csv" for name in ("table", "summary", "comparisons")]
    echo(f"tables: {'  '.join(map(str, tables))}   figures: {'  '.join(map(str, pictures))}")
    return summary


def _write_scores(results: Sequence[Result], path: Path) -> None:
    """Write every score of every run."""
    scores = [name for name in results[0].rows[0] if name not in _CASE_COLUMNS]
    rows = []
    for result in results:
        run = [getattr(result, name) for name in _RUN_COLUMNS]
        rows += [
            run + [row.get(name, "") for name in (*_CASE_COLUMNS, *scores)] for row in result.rows
        ]
    write_csv(path, [*_RUN_COLUMNS, *_CASE_COLUMNS, *scores], rows)


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per method, number of labels and class.

    Mean and standard deviation over the runs, and the difference to the twin.
    """
    groups = group_results(results)
    rows = []
    for (method, labels), group in groups.items():
        for name in group[0].names():
            row = {
                "method": method,
                "labels": labels,
                "fraction": group[0].fraction,
                "transductive": group[0].transductive,
                "name": name,
                "score": group[0].key,
                "runs": len(group),
                "late_change": late_change(group),
                **mean_and_sd([result.mean(name) for result in group]),
            }
            rows.append(row | _compared(groups, group, group[0].twin, name))
    return _with_simultaneous(rows)


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
    for method, reference in pairs:
        for (name_of_group, labels), group in groups.items():
            if name_of_group != method or (reference, labels) not in groups:
                continue
            for name in group[0].names():
                row = {"method": method, "labels": labels, "name": name, "score": group[0].key}
                rows.append(row | _compared(groups, group, reference, name))
    return _with_simultaneous([row for row in rows if row["twin"] is not None])


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
) -> dict[str, Any]:
    """The columns of a method's difference to its twin, or another; empty where there is none."""
    labels = group[0].labels
    pairs = pair_runs(group, groups.get((twin or "", labels), []))
    comparison = compare(pairs, name) if pairs else None
    if comparison is None:
        return dict.fromkeys(COMPARISON_COLUMNS)
    twins = {count: runs for (method, count), runs in groups.items() if method == twin}
    saved = labels_saved(group, twins, name)
    error = comparison.error
    return {
        "twin": twin,
        "pairs": len(comparison.by_run),
        "twins": len(comparison.by_twin),
        **comparison.columns(),
        "difference_median": float(np.median(comparison.by_run)),
        "wins": int((comparison.by_twin > 0).sum()),
        "low_simultaneous": None,
        "high_simultaneous": None,
        "error": error.error if error else None,
        "df": error.df if error else None,
        "over": " ".join(error.over) if error else None,
        "labels_saved": str(saved),
        "labels_saved_low": saved.low,
        "labels_saved_high": saved.high,
    }


def _with_simultaneous(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the intervals that are right at all numbers of labels together, with 95 %."""
    compared = [row for row in rows if row["error"] is not None]
    groups = Counter(_curve_of(row) for row in compared)
    for row in compared:
        error = MeanError(row["error"], row["df"], ())
        confidence = simultaneous(groups[_curve_of(row)])
        low, high = error.interval(row["difference"], confidence)
        row["low_simultaneous"] = low
        row["high_simultaneous"] = high
    return list(rows)


def _curve_of(row: Row) -> tuple[str, str, str]:
    """What the rows of one method have in common at all numbers of labels."""
    return row["method"], row["twin"], row["name"]


def _print_summary(summary: Sequence[Row], results: Sequence[Result]) -> None:
    """Print the rows of the overall mean; all rows are in `summary.csv`."""
    overall = results[0].overall
    key = results[0].key
    score = key.replace("_", " ").capitalize()
    table = _new_table(
        f"{score}, {overall}, {len(results[0].cases())} test cases",
        ("labels", "runs", "mean ± sd", "minus twin: mean"),
    )
    rows = [row for row in summary if row["name"] == overall]
    for labels in sorted({row["labels"] for row in rows}):
        for row in rows:
            if row["labels"] == labels:
                _add_row(table, _summary_cells(row))
        table.add_section()
    console = _wide_console()
    console.print(table)
    console.print("\n".join(_footnotes(rows, results[0])), soft_wrap=True)


def _summary_cells(row: Row) -> list[str]:
    name = row["method"] + (" (transductive)" if row["transductive"] else "")
    sd = "" if row["sd"] is None else f" ± {row['sd']:.3f}"
    cells = [name, str(row["labels"]), str(row["runs"]), f"{row['mean']:.3f}{sd}"]
    return cells + _difference_cells(row) if row["twin"] else cells


def _footnotes(rows: Sequence[Row], result: Result) -> list[str]:
    lines = [
        "sd: over runs. Differences are paired by seed and case with the from-scratch twin: same",
        "network, labels and steps. Wins: twins that are worse than the mean of the runs paired",
        "with them. 95 %: Student's t over pre-trainings, draws of labels and subjects, if there",
        "are several; all labels: right at all numbers of labels together. Labels saved: how many",
        "more the twin needs for the same score, by its curve; unknown if that has one point or",
        "has not converged (summary.csv has the reason).",
    ]
    if any(row["low"] is not None and FACTORS[0] not in row["over"] for row in rows):
        lines.append("Of methods with one pre-training, intervals are about this one.")
    if any(row["twin"] and row["low"] is None for row in rows):
        lines.append("-: no interval, of one draw of labels or one subject.")
    if result.answers():
        lines.append("The score is of all test cases of a run together, across its folds if any.")
    if any(row["transductive"] for row in rows):
        lines.append("Transductive: pre-trained on the test scans too, without their labels.")
    if result.key == "dice":
        lines.append(EMPTY_RULE)
    return lines


def _print_comparison(kind: str, rows: Sequence[Row]) -> None:
    """Print a comparison with others than the twins, if there is one."""
    if not rows:
        return
    table = _new_table(TITLES[kind], ("labels", "difference: mean"))
    for row in sorted(rows, key=lambda row: int(row["labels"])):
        name = f"{row['method']} - {row['twin']}"
        _add_row(table, [name, str(row["labels"]), *_difference_cells(row)])
    _wide_console().print(table)


def _difference_cells(row: Row) -> list[str]:
    return [column.text(row) for column in _DIFFERENCE]


def _new_table(title: str, headings: Sequence[str]) -> Table:
    """A table with a column of names, these columns and those of a difference.

    The last heading is that of the mean difference.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("", justify="left", no_wrap=True)
    for heading in (*headings, *(column.heading for column in _DIFFERENCE[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add_row(table: Table, cells: Sequence[str]) -> None:
    # Text: rich would take a name in brackets for a style
    table.add_row(*(Text(cell) for cell in cells))


def _wide_console() -> Console:
    console = Console(highlight=False)
    # a narrow terminal would cut the cells: long lines are wrapped instead
    console.width = max(console.width, WIDTH)
    return console
