"""What a study says: one table of every score, one of means and paired differences, and the same for people."""

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
from selfvox.files import write_csv
from selfvox.inference.evaluate import EMPTY_RULE
from selfvox.progress import say
from selfvox.studies import figures, results
from selfvox.studies.plan import Plan
from selfvox.studies.results import Result

DRAWS = 5000  # of the bootstrap
WIDTH = 160  # columns that a row needs
CANNOT = "cannot be told"


def make(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Write `table.csv`, `summary.csv` and the figures from the run folders, and print the summary.

    Raises:
        DataError: no cell is done yet.
    """
    found, lacking = results.read(plan, out), results.missing(plan, out)
    if not found:
        raise DataError(f"{out}: no cell is done yet; run `selfvox study PLAN --out {out}` first")
    of_row = ("fold", "case", "class", "name")
    scores = [name for name in found[0].rows[0] if name not in of_row]
    of_run = ("method", "labels", "fraction", "seed", "pretrain_seed", "transductive")
    rows = (
        [cell(getattr(result, name)) for name in of_run] + [row.get(name, "") for name in (*of_row, *scores)]
        for result in found
        for row in result.rows
    )
    write_csv(out / "table.csv", [*of_run, *of_row, *scores], rows)
    summary = summarise(found)
    write_csv(out / "summary.csv", list(summary[0]), ([cell(value) for value in row.values()] for row in summary))
    _show(summary, found)
    pictures = figures.draw(plan, found, summary, out / "figures")
    if lacking:
        total = len(lacking) + sum(len(result.paths) for result in found)
        say(f"{len(lacking)} of {total} cells are not there yet ({lacking[0]} first); run the study again to make them")
    say(f"tables: {out / 'table.csv'}  {out / 'summary.csv'}   figures: {'  '.join(map(str, pictures))}")
    return summary


def summarise(found: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per method, number of labels and class: mean and spread over the runs, and the difference to the twin."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in found:
        groups.setdefault((result.method, result.labels), []).append(result)
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
            twin = group[0].twin
            curve = {n: [one.mean(name) for one in runs] for (who, n), runs in groups.items() if who == twin}
            rows.append(row | _compared(group, groups.get((twin or "", labels), []), name, curve))
    return rows


def _compared(
    group: Sequence[Result], twins: Sequence[Result], name: str, curve: Mapping[int, Sequence[float]]
) -> dict[str, Any]:
    """The columns that say how a method differs from its twin; empty ones where it has none."""
    columns = ("twin", "pairs", "difference", "difference_median", "wins", "low", "high", "labels_saved")
    differences = paired(group, twins, name)
    if differences is None:
        return dict.fromkeys(columns)
    by_run = np.array([np.nanmean(run) for seeds in differences for run in seeds if not np.isnan(run).all()])
    low, high = bootstrap(differences)
    score = float(np.mean([result.mean(name) for result in group]))
    same = labels_at(score, {labels: float(np.mean(means)) for labels, means in curve.items()})
    saved = CANNOT if same is None else same - group[0].labels
    values = (group[0].twin, len(by_run), float(by_run.mean()), float(np.median(by_run)), int((by_run > 0).sum()))
    return dict(zip(columns, (*values, low, high, saved), strict=True))


def paired(group: Sequence[Result], twins: Sequence[Result], name: str) -> np.ndarray | None:
    """Differences of each run to its twin's run of the same seed, case by case.

    Returns:
        (pre-training seed, seed, case), nan where a run is not there yet; None where there is no pair.
    """
    by_seeds = {(result.pretrain_seed, result.seed): result.of_case(name) for result in twins}
    runs = {(result.pretrain_seed, result.seed): result.of_case(name) for result in group}
    # a twin from scratch has no seed of pre-training
    twin = {both: scores for both in runs if (scores := by_seeds.get(both) or by_seeds.get((None, both[1])))}
    runs = {both: scores for both, scores in runs.items() if both in twin}
    if not runs:
        return None
    first, second = list(dict.fromkeys(key[0] for key in runs)), list(dict.fromkeys(key[1] for key in runs))
    cases = sorted({case for both, scores in runs.items() for case in scores.keys() & twin[both].keys()})
    found = np.full((len(first), len(second), len(cases)), np.nan)
    for (pretrain_seed, seed), scores in runs.items():
        found[first.index(pretrain_seed), second.index(seed)] = [
            scores.get(case, np.nan) - twin[pretrain_seed, seed].get(case, np.nan) for case in cases
        ]
    return found


def bootstrap(differences: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """95 % interval of the mean of (pre-training seed, seed, case); each axis is drawn anew, independently."""
    rng = np.random.default_rng(0)
    # how often each seed and case is drawn; the mean over what is drawn is a weighted one
    drawn = [rng.multinomial(size, [1 / size] * size, draws) for size in differences.shape]
    there = ~np.isnan(differences)
    sums, counts = (
        np.einsum("np,ns,nc,psc->n", *drawn, values, optimize=True) for values in (np.nan_to_num(differences), there)
    )
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def labels_at(score: float, curve: Mapping[int, float]) -> float | None:
    """The fewest labels with which a curve of score by labels, straight between its points, reaches a score.

    None where the score lies below the curve's first point or above all of it.
    """
    points = sorted(curve.items())
    if not points or score < points[0][1]:
        return None
    before = points[0]
    for labels, reached in points:
        if reached >= score:
            rise = reached - before[1]
            share = (score - before[1]) / rise if rise > 0 else 1.0
            return before[0] + share * (labels - before[0])
        before = (labels, reached)
    return None


def _show(summary: Sequence[Mapping[str, Any]], found: Sequence[Result]) -> None:
    """Print the rows of the classes' mean, or of the only class; all of them are in `summary.csv`."""
    shown = found[0].overall
    cases, key = len(found[0].of_case(shown)), found[0].key
    table = Table(
        title=f"{key.capitalize()}, {shown}, {cases} test case{'s' * (cases != 1)}", title_justify="left", box=SIMPLE
    )
    for heading in ("", "labels", "runs", "mean ± sd", "minus twin: mean", "95 %", "median", "wins", "labels saved"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    rows = [row for row in summary if row["name"] == shown]
    for labels in sorted({row["labels"] for row in rows}):
        for row in (row for row in rows if row["labels"] == labels):
            spread = "" if row["sd"] is None else f" ± {row['sd']:.3f}"
            name = row["method"] + (" (transductive)" if row["transductive"] else "")
            line = [name, str(labels), str(row["runs"]), f"{row['mean']:.3f}{spread}"]
            if row["twin"]:
                saved = row["labels_saved"]
                line += [
                    f"{row['difference']:+.3f}",
                    f"{row['low']:+.3f} ... {row['high']:+.3f}",
                    f"{row['difference_median']:+.3f}",
                    f"{row['wins']} of {row['pairs']}",
                    saved if isinstance(saved, str) else f"{saved:+.1f}",
                ]
            # Text: a name in brackets is no style
            table.add_row(*map(Text, line))
        table.add_section()
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    lines = [
        "sd: over runs. Differences pair seed and case with the from-scratch twin: same network, labels and steps; the",
        "interval draws seeds and cases anew. Labels saved: how many more the twin needs for the same score, by its",
        f"curve; '{CANNOT}' where the score lies outside of it.",
    ]
    if key == results.KAPPA:
        lines.append("Kappa is one number for all test cases of a run, or of a fold: cases are not drawn anew.")
    if any(row["transductive"] for row in rows):
        lines.append("Transductive: the test scans, without labels, were among those of the pre-training.")
    if key == "dice":
        lines.append(EMPTY_RULE)
    for sentence in lines:
        say(sentence)


def cell(value: Any) -> Any:
    """A value as the tables hold it: six digits, and nothing where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # a number, not text, which a minus would make a formula
        return "" if np.isnan(value) else float(f"{value:.6g}")
    return "" if value is None else value
