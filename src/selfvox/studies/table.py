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
from selfvox.studies import agreement, figures, results
from selfvox.studies.plan import Plan
from selfvox.studies.results import Result

DRAWS = 5000  # of the bootstrap
WIDTH = 160  # columns that a row needs
CANNOT = "cannot be told"
COMPARED = ("twin", "pairs", "difference", "difference_median", "wins", "low", "high", "labels_saved")
AGAINST = ("method", "labels", "name", "score", *COMPARED)
DIFFERENCES = ("95 %", "median", "wins", "labels saved")
EQUAL, FLAT = "equal compute", "3D minus 2D"

TITLES = {
    EQUAL: "Minus the from-scratch twin at equal compute, trained on for what the pre-training cost",
    FLAT: "3D minus 2D",
}


def make(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """Write `table.csv`, `summary.csv` and the figures from the run folders, and print the summary.

    Raises:
        DataError: no cell is done yet.
    """
    found, (lacking, total) = results.read(plan, out), results.missing(plan, out)
    if not found:
        folds = " in all folds" if plan.folds else ""
        raise DataError(f"{out}: no cell is done yet{folds}; run `selfvox study PLAN --out {out}` first")
    of_row = ("fold", "case", "class", "name")
    scores = [name for name in found[0].rows[0] if name not in of_row]
    of_run = ("method", "labels", "fraction", "seed", "pretrain_seed", "transductive")
    rows = (
        [getattr(result, name) for name in of_run] + [row.get(name, "") for name in (*of_row, *scores)]
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
        say(f"{len(lacking)} of {total} cells are not there yet ({lacking[0]} first); run the study again to make them")
    tables = [out / f"{name}.csv" for name in ("table", "summary", "comparisons")]
    say(f"tables: {'  '.join(map(str, tables))}   figures: {'  '.join(map(str, pictures))}")
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
    groups: Mapping[tuple[str, int], Sequence[Result]], group: Sequence[Result], twin: str | None, name: str
) -> dict[str, Any]:
    """The columns that say how a method differs from its twin, or another; empty ones where there is none."""
    pairs = paired(group, groups.get((twin or "", group[0].labels), []))
    if not pairs:
        return dict.fromkeys(COMPARED)
    curve = {n: [one.mean(name) for one in runs] for (who, n), runs in groups.items() if who == twin}
    by_run, (low, high) = _of_answers(pairs) if group[0].answers() else _of_cases(pairs, name)
    score = float(np.mean([result.mean(name) for result in group]))
    same = labels_at(score, {labels: float(np.mean(means)) for labels, means in curve.items()})
    saved = CANNOT if same is None else same - group[0].labels
    values = (twin, len(by_run), float(by_run.mean()), float(np.median(by_run)), int((by_run > 0).sum()))
    return dict(zip(COMPARED, (*values, low, high, saved), strict=True))


def paired(group: Sequence[Result], twins: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Each run with its twin's run of the same seed, and of the same pre-training seed where the twin has some.

    Pairs that were not scored on one case in common are left out.
    """
    twin = {(result.seed, result.pretrain_seed): result for result in twins}
    found = ((result, twin.get((result.seed, result.pretrain_seed), twin.get((result.seed, None)))) for result in group)
    return [(result, other) for result, other in found if other and set(result.cases()) & set(other.cases())]


def _grid(pairs: Sequence[tuple[Result, Result]]) -> tuple[list[int | None], list[int]]:
    """The pre-training seeds and the seeds that occur."""
    runs = [result for result, _ in pairs]
    return list(dict.fromkeys(run.pretrain_seed for run in runs)), list(dict.fromkeys(run.seed for run in runs))


def _of_cases(pairs: Sequence[tuple[Result, Result]], name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Mean differences of the runs, and their interval, of a score that is a mean over cases."""
    differences, subjects = by_case(pairs, name)
    means = [np.nanmean(run) for seeds in differences for run in seeds if not np.isnan(run).all()]
    return np.array(means), bootstrap(differences, subjects)


def by_case(pairs: Sequence[tuple[Result, Result]], name: str) -> tuple[np.ndarray, list[str]]:
    """Differences of each run to its twin's, case by case.

    Returns:
        (pre-training seed, seed, case), nan where a run is not there yet; and the subject of each case.
    """
    first, second = _grid(pairs)
    scores = [(result, result.of_case(name), twin.of_case(name)) for result, twin in pairs]
    cases = sorted({case for _, own, other in scores for case in own.keys() & other.keys()})
    found = np.full((len(first), len(second), len(cases)), np.nan)
    for result, own, other in scores:
        found[first.index(result.pretrain_seed), second.index(result.seed)] = [
            own.get(case, np.nan) - other.get(case, np.nan) for case in cases
        ]
    return found, _subjects(pairs, cases)


def _subjects(pairs: Sequence[tuple[Result, Result]], cases: Sequence[str]) -> list[str]:
    known = pairs[0][0].subjects
    return [known.get(case, case) for case in cases]


def _of_answers(pairs: Sequence[tuple[Result, Result]]) -> tuple[np.ndarray, tuple[float, float]]:
    """The same of a score that is none of single cases: it is computed anew of each draw of them."""
    first, second = _grid(pairs)
    answers = [(result, result.answers(), twin.answers()) for result, twin in pairs]
    cases = sorted({case for _, own, other in answers for case in own.keys() & other.keys()})
    classes = 1 + max(max(pair) for _, *both in answers for each in both for pair in each.values())
    rng = np.random.default_rng(0)
    drawn = _drawn(rng, (len(first), len(second)), _subjects(pairs, cases), DRAWS)
    drawn = [np.vstack([np.ones(each.shape[1]), each]) for each in drawn]  # what is there, before what is drawn
    by_run, total, weight = [], np.zeros(1 + DRAWS), np.zeros(1 + DRAWS)
    for result, own, other in answers:
        there = np.array([case in own and case in other for case in cases])
        both = []
        for each in (own, other):
            of_case = np.zeros((len(cases), classes**2))
            of_case[there] = agreement.counts([each[case] for case in np.array(cases)[there]], classes)
            both.append(agreement.scores(result.key, (drawn[2] @ of_case).reshape(-1, classes, classes)))
        difference = both[0] - both[1]
        by_run.append(difference[0])
        times = drawn[0][:, first.index(result.pretrain_seed)] * drawn[1][:, second.index(result.seed)]
        times = np.where(np.isnan(difference), 0, times)
        total, weight = total + times * np.nan_to_num(difference), weight + times
    means = (total[1:] / np.maximum(weight[1:], 1))[weight[1:] > 0]
    low, high = np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
    return np.array(by_run), (float(low), float(high))


def _drawn(rng: np.random.Generator, seeds: Sequence[int], subjects: Sequence[str], draws: int) -> list[np.ndarray]:
    """How often each seed and each case is drawn, when as many seeds and subjects are drawn as there are.

    The eyes or sessions of one subject are alike, so that they are drawn together.

    Args:
        rng: draws.
        seeds: how many there are, for each kind of seed.
        subjects: the subject of each case.
        draws: how often.

    Returns:
        (draws, count) for each kind of seed, and for the cases.
    """
    place = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
    *of_seeds, of_subjects = (rng.multinomial(size, [1 / size] * size, draws) for size in (*seeds, len(place)))
    return [*of_seeds, of_subjects[:, [place[subject] for subject in subjects]]]


def bootstrap(
    differences: np.ndarray, subjects: Sequence[str] | None = None, draws: int = DRAWS
) -> tuple[float, float]:
    """95 % interval of the mean of (pre-training seed, seed, case); seeds and subjects are drawn anew, independently.

    Args:
        differences: nan where one is not there.
        subjects: of the cases; default: each is its own.
        draws: how often.
    """
    *seeds, cases = differences.shape
    # the mean over what is drawn is a weighted one
    drawn = _drawn(np.random.default_rng(0), seeds, subjects or list(map(str, range(cases))), draws)
    there = ~np.isnan(differences)
    sums, counts = (
        np.einsum("np,ns,nc,psc->n", *drawn, values, optimize=True) for values in (np.nan_to_num(differences), there)
    )
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
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
        lines.append("The score is of all test cases of a run together, those of all folds, where there are folds.")
    if any(row["transductive"] for row in rows):
        lines.append("Transductive: the test scans, without labels, were among those of the pre-training.")
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
        table.add_row(*map(Text, (f"{row['method']} - {row['twin']}", str(row["labels"]), *_differences(row))))
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
