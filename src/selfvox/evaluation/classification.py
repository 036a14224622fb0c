"""Scores of predicted classes of whole scans: kappa, accuracy, AUC and the confusion matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfvox.data.naming import natural_key, printable
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError
from selfvox.evaluation.class_certainty import report_class_certainty
from selfvox.ops.metrics import auc_per_class, confusion, kappa, nan_mean, recalls
from selfvox.plotting import save_figure
from selfvox.prediction.class_table import ClassTable, read_class_table
from selfvox.prediction.output_folder import CLASS_TABLE
from selfvox.prediction.read_predictions import read_class_names, warn_of_trained_scans
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Evaluate

Row = dict[str, Any]  # score, class, name where classes have names, value


@dataclass(frozen=True)
class ScoredCases:
    """Cases with a true class and a prediction; classes are their indices."""

    truth: np.ndarray  # (case,)
    predicted: np.ndarray  # (case,)
    probabilities: np.ndarray  # (case, class)
    classes: tuple[str, ...]  # grades
    names: tuple[str, ...]

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Counts (true, predicted)."""
        return confusion(self.truth, self.predicted, len(self.classes))

    @functools.cached_property
    def recall(self) -> list[float]:
        """Of each class; nan where it has no case."""
        shares: list[float] = recalls(self.confusion).tolist()
        return shares

    @functools.cached_property
    def auc(self) -> list[float]:
        """Of each class against the rest; nan where one side has no case."""
        return auc_per_class(self.truth, self.probabilities)


def _accuracy(cases: ScoredCases) -> float:
    return float(np.trace(cases.confusion) / cases.confusion.sum())


# one value each
OVERALL_SCORES: Mapping[str, Callable[[ScoredCases], float | int]] = {
    "cases": lambda cases: int(cases.confusion.sum()),
    "quadratic_kappa": lambda cases: float(kappa(cases.confusion)),
    "accuracy": _accuracy,
    "balanced_accuracy": lambda cases: nan_mean(cases.recall),
    "auc": lambda cases: nan_mean(cases.auc),
}
# one value for each class
CLASS_SCORES: Mapping[str, Callable[[ScoredCases], Sequence[float]]] = {
    "recall": lambda cases: cases.recall,
    "auc": lambda cases: cases.auc,
}


def evaluate_classes(settings: Evaluate) -> list[Row]:
    """Score a table of predicted classes: one row for each score.

    The class of a row is empty for scores of all classes together.

    Raises:
        DataError: the table is damaged, no scan has a true class and a prediction, or a true class
            is unknown.
    """
    table = read_class_table(settings.predictions / CLASS_TABLE)
    truth = _true_classes(settings.truth, settings.source, table.classes)
    cases = _match(settings, table, truth)
    rows = _score(cases)
    _print_scores(rows)
    _print_confusion(cases)
    known = {case: truth[case] for case in truth.keys() & table.predicted.keys()}
    certainty = report_class_certainty(table, known)
    rows += [_row(name, "", value, cases) for name, value in certainty.items()]
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(settings.out, list(rows[0]), (row.values() for row in rows))
        picture = settings.out.with_suffix(".png")
        _draw_confusion(cases, picture)
        echo(f"scores: {settings.out}   confusion matrix: {picture}")
    return rows


def _true_classes(root: Path, source: str, classes: Sequence[str]) -> dict[str, int]:
    """Index of the true class by case id."""
    cases = find_dataset(root, source).cases
    # text, as the table of predictions names its classes
    grades = {case.id: str(case.grade) for case in cases if case.grade is not None}
    if not grades:
        raise DataError(f"{root}: has no classes; name the table with the scans and their grade")
    unknown = sorted(set(grades.values()) - set(classes), key=natural_key)
    if unknown:
        raise DataError(
            f"{root}: has the class '{printable(unknown[0])}', which the run was not trained on "
            f"({', '.join(map(printable, classes))}); correct or remove its rows"
        )
    return {case: classes.index(grade) for case, grade in grades.items()}


def _match(settings: Evaluate, table: ClassTable, truth: Mapping[str, int]) -> ScoredCases:
    """The scans with a true class and a prediction; how many have one alone is printed."""
    common = sorted(truth.keys() & table.predicted.keys(), key=natural_key)
    if not common:
        prediction = printable(min(table.predicted))
        scan = printable(min(truth))
        raise DataError(
            f"{settings.predictions}: no prediction is called like a scan of {settings.truth} "
            f"(such as {prediction} and {scan}); name the table that the scans came from"
        )
    for reason, names in (
        ("predictions have no true class", table.predicted.keys() - truth.keys()),
        ("scans with a class have no prediction", truth.keys() - table.predicted.keys()),
    ):
        if names:
            echo(f"{len(names)} {reason} and are left out")
    warn_of_trained_scans(settings.predictions, common)
    name_of = read_class_names(settings.predictions) or {}
    return ScoredCases(
        truth=np.array([truth[case] for case in common]),
        predicted=np.array([table.predicted[case] for case in common]),
        probabilities=np.array([table.probabilities[case] for case in common]),
        classes=table.classes,
        names=tuple(name_of.get(int(value), value) for value in table.classes),
    )


def _score(cases: ScoredCases) -> list[Row]:
    """All scores: of all classes, of each class, then the counts of the confusion matrix."""
    scores: list[tuple[str, str, float | int]] = []
    for name, overall in OVERALL_SCORES.items():
        scores.append((name, "", overall(cases)))
    for name, of_classes in CLASS_SCORES.items():
        scores += [(name, *pair) for pair in zip(cases.classes, of_classes(cases), strict=True)]
    for true, counts in zip(cases.classes, cases.confusion.tolist(), strict=True):
        for predicted, count in zip(cases.classes, counts, strict=True):
            scores.append((f"taken_for_{predicted}", true, count))
    return [_row(*score, cases) for score in scores]


def _row(score: str, value_of_class: str, value: float | int, cases: ScoredCases) -> Row:
    row: Row = {"score": score, "class": value_of_class}
    if cases.names != cases.classes:
        by_class = dict(zip(cases.classes, cases.names, strict=True))
        row["name"] = by_class.get(value_of_class, "")
    return {**row, "value": value}


def _print_scores(rows: Sequence[Row]) -> None:
    """Print the scores of all classes together."""
    table = Table(box=SIMPLE)
    table.add_column("score")
    table.add_column("value", justify="right")
    for row in rows:
        if row["class"] == "":
            table.add_row(row["score"].replace("_", " "), _cell(row["value"]))
    Console(highlight=False).print(table)


def _print_confusion(cases: ScoredCases) -> None:
    """Print the confusion matrix with the recall of each class."""
    table = Table(
        title="true class (rows), predicted class (columns)", title_justify="left", box=SIMPLE
    )
    for heading in ("", *cases.names, "recall"):
        table.add_column(Text(printable(heading)), justify="right")
    rows = zip(cases.names, cases.confusion.tolist(), cases.recall, strict=True)
    for name, counts, recall in rows:
        # Text: rich would take a name in brackets for a style
        table.add_row(Text(printable(name)), *map(str, counts), _cell(recall))
    Console(highlight=False).print(table)


def _cell(value: float | int) -> str:
    """A count as it is, a share with three digits, `-` for nan."""
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}"


def _draw_confusion(cases: ScoredCases, out: Path) -> None:
    """Draw the confusion matrix: counts, shaded by the share of their true class."""
    # no division by 0 for a class without a case
    shares = cases.confusion / np.maximum(1, cases.confusion.sum(1, keepdims=True))
    edge = max(3.5, 0.7 * len(cases.classes) + 1.5)
    figure = Figure(figsize=(edge, edge), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(cases.confusion):
        # white is legible on dark blue
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    names = [printable(name) for name in cases.names]
    rotation = 45 if max(map(len, names)) > 3 else 0
    places = range(len(names))
    # names are no formulas, whatever dollar signs they have
    axes.set_xticks(places, names, rotation=rotation, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    save_figure(figure, out, dpi=150)
