"""The tables of a study: means, paired differences, labels saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.errors import DataError
from selfvox.evaluation.segmentation import EMPTY_RULE
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.studies import figures, results
from selfvox.studies.plan import Plan
from selfvox.studies.results import Result
from selfvox.studies.statistics import EQUAL, FLAT, WIDTH, _of_answers, _of_cases, labels_at, paired

CANNOT = "cannot be told"
COMPARED = (
    "twin",
    "pairs",
    "difference",
    "difference_median",
    "wins",
    "low",
    "high",
    "labels_saved",
)
AGAINST = ("method", "labels", "name", "score", *COMPARED)
DIFFERENCES = ("95 %", "median", "wins", "labels saved")

TITLES = {
    EQUAL: "Minus the from-scratch twin at equal compute, trained on for what the pre-training cost",
    FLAT: "3D minus 2D",
}


def make_tables(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Write `table.csv`, `summary.csv` and the figures from the run folders, and print the summary.

    Raises:
        DataError: no cell is done yet.
    """
    found, (lacking, total) = results.read_results(plan, out), results.missing(plan, out)
    if not found:
        folds = " in all folds" if plan.folds else ""
        raise DataError(
            f"{out}: no cell is done yet{folds}; run `selfvox study PLAN --out {out}` first"
        )
    of_row = ("fold", "case", "class", "name")
    scores = [name for name in found[0].rows[0] if name not in of_row]
    of_run = ("method", "labels", "fraction", "seed", "pretrain_seed", "transductive")
    rows = (
        [getattr(result, name) for name in of_run]
        + [row.get(name, "") for name in (*of_row, *scores)]
        for result in found
        for row in result.rows
    )
    write_csv(out / "table.csv", [*of_run, *of_row, *scores], rows)
    summary = summarise(found)
    write_csv(out / "summary.csv", list(summary[0]), (row.values() for row in summary))
    _show(summary, found)
    further = {
        EQUAL: against(found, results.at_equal_compute(plan, out)),
        FLAT: against(found, results.in_2d(plan, out)),
    }
    lines = ([what, *row.values()] for what, rows in further.items() for row in rows)
    write_csv(out / "comparisons.csv", ["comparison", *AGAINST], lines)
    for what, differences in further.items():
        _show_against(what, [row for row in differences if row["name"] == found[0].overall])
    pictures = figures.draw(plan, found, summary, further, out / "figures")
    if lacking:
        echo(
            f"{len(lacking)} of {total} cells are not there yet ({lacking[0]} first); run the study again to make them"
        )
    tables = [out / f"{name}.csv" for name in ("table", "summary", "comparisons")]
    echo(f"tables: {'  '.join(map(str, tables))}   figures: {'  '.join(map(str, pictures))}")
    return summary


def summarise(found: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per method, number of labels and class: mean and spread over the runs, and the difference to the twin."""
    groups = _groups(found)
    rows = []
    for (method, labels), group in groups.items():
        for name in group[0].names():
            means = [result.mean(name) for result in group]
            row: dict[str, Any] = {
                "method": method,
                "labels": labels,
                "fraction": group[0].fraction,
                "transductive": group[0].transductive,
                "name": name,
                "score": group[0].key,
                "runs": len(group),
                "mean": float(np.mean(means)),
                "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
            }
            rows.append(row | _compared(groups, group, group[0].twin, name))
    return rows


def against(found: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """How methods differ from others than their twin: one row per pair, number of labels and class."""
    groups = _groups(found)
    rows = []
    for method, other in pairs:
        for (who, labels), group in groups.items():
            if who == method and (other, labels) in groups:
                for name in group[0].names():
                    row = {"method": method, "labels": labels, "name": name, "score": group[0].key}
                    rows.append(row | _compared(groups, group, other, name))
    return [row for row in rows if row["twin"] is not None]


def _groups(found: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in found:
        groups.setdefault((result.method, result.labels), []).append(result)
    return groups


def _compared(
    groups: Mapping[tuple[str, int], Sequence[Result]],
    group: Sequence[Result],
    twin: str | None,
    name: str,
) -> dict[str, Any]:
    """The columns that say how a method differs from its twin, or another; empty ones where there is none."""
    pairs = paired(group, groups.get((twin or "", group[0].labels), []))
    if not pairs:
        return dict.fromkeys(COMPARED)
    curve = {
        n: [one.mean(name) for one in runs] for (who, n), runs in groups.items() if who == twin
    }
    by_run, (low, high) = _of_answers(pairs) if group[0].answers() else _of_cases(pairs, name)
    score = float(np.mean([result.mean(name) for result in group]))
    same = labels_at(score, {labels: float(np.mean(means)) for labels, means in curve.items()})
    saved = CANNOT if same is None else same - group[0].labels
    values = (
        twin,
        len(by_run),
        float(by_run.mean()),
        float(np.median(by_run)),
        int((by_run > 0).sum()),
    )
    return dict(zip(COMPARED, (*values, low, high, saved), strict=True))


def _show(summary: Sequence[Mapping[str, Any]], found: Sequence[Result]) -> None:
    """Print the rows of the classes' mean, or of the only class; all of them are in `summary.csv`."""
    shown = found[0].overall
    cases, key = len(found[0].cases()), found[0].key
    title = f"{key.replace('_', ' ').capitalize()}, {shown}, {cases} test cases"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in ("", "labels", "runs", "mean ± sd", "minus twin: mean", *DIFFERENCES):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    rows = [row for row in summary if row["name"] == shown]
    for labels in sorted({row["labels"] for row in rows}):
        for row in (row for row in rows if row["labels"] == labels):
            spread = "" if row["sd"] is None else f" ± {row['sd']:.3f}"
            name = row["method"] + (" (transductive)" if row["transductive"] else "")
            line = [name, str(labels), str(row["runs"]), f"{row['mean']:.3f}{spread}"]
            if row["twin"]:
                line += _differences(row)
            # Text: a name in brackets is no style
            table.add_row(*map(Text, line))
        table.add_section()
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    lines = [
        "sd: over runs. Differences pair seed and case with the from-scratch twin: same network, labels and steps; the",
        "interval draws seeds and subjects anew. Labels saved: how many more the twin needs for the same score, by its",
        f"curve; '{CANNOT}' where the score lies outside of it.",
    ]
    if found[0].answers():
        lines.append(
            "The score is of all test cases of a run together, those of all folds, where there are folds."
        )
    if any(row["transductive"] for row in rows):
        lines.append(
            "Transductive: the test scans, without labels, were among those of the pre-training."
        )
    if key == "dice":
        lines.append(EMPTY_RULE)
    console.print("\n".join(lines), soft_wrap=True)


def _show_against(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a further comparison, where there is one."""
    if not rows:
        return
    table = Table(title=TITLES[what], title_justify="left", box=SIMPLE)
    for heading in ("", "labels", "difference: mean", *DIFFERENCES):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in sorted(rows, key=lambda row: int(row["labels"])):
        # Text: a name in brackets is no style
        table.add_row(
            *map(Text, (f"{row['method']} - {row['twin']}", str(row["labels"]), *_differences(row)))
        )
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)


def _differences(row: Mapping[str, Any]) -> list[str]:
    """The cells of a difference."""
    saved = row["labels_saved"]
    return [
        f"{row['difference']:+.3f}",
        f"{row['low']:+.3f} ... {row['high']:+.3f}",
        f"{row['difference_median']:+.3f}",
        f"{row['wins']} of {row['pairs']}",
        saved if isinstance(saved, str) else f"{saved:+.1f}",
    ]
