"""Scores of predicted classes: kappa, accuracy, AUC and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from selfvox.ops.metrics import auc_per_class, confusion, kappa, nan_mean, recalls
from selfvox.prediction.class_table import ClassTable, read_class_table
from selfvox.prediction.output_folder import CLASS_TABLE
from selfvox.runs.atomic_files import atomic_write, write_csv
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Evaluate


def evaluate_classes(settings: Evaluate) -> list[dict[str, Any]]:
    """Score a table of predicted classes: one row for each score, with its class where it is that of one."""
    answers = read_class_table(settings.predictions / CLASS_TABLE)
    truth = _truth(settings.truth, settings.source, answers)
    both = sorted(truth.keys() & answers.predicted.keys(), key=natural_key)
    if not both:
        raise DataError(
            f"{settings.predictions}: no prediction is called like a scan of {settings.truth} "
            f"(such as {printable(min(answers.predicted))} and {printable(min(truth))}); name the table that the scans came from"
        )
    for what, alone in (
        ("predictions have no true class", answers.predicted.keys() - truth.keys()),
        ("scans with a class have no prediction", truth.keys() - answers.predicted.keys()),
    ):
        if alone:
            echo(f"{len(alone)} {what} and are left out")
    true = np.array([truth[name] for name in both])
    table = confusion(
        true, np.array([answers.predicted[name] for name in both]), len(answers.classes)
    )
    rows = _rows(
        table, true, np.array([answers.probabilities[name] for name in both]), answers.classes
    )
    _show(rows, table, answers.classes)
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(settings.out, list(rows[0]), (row.values() for row in rows))
        picture = settings.out.with_suffix(".png")
        _draw(table, answers.classes, picture)
        echo(f"scores: {settings.out}   confusion matrix: {picture}")
    return rows


def _truth(root: Path, source: str, answers: ClassTable) -> dict[str, int]:
    graded = {
        case.id: str(case.grade)
        for case in find_dataset(root, source).cases
        if case.grade is not None
    }
    if not graded:
        raise DataError(f"{root}: holds no classes; name the table with the scans and their grade")
    unknown = sorted(
        {grade for grade in graded.values() if grade not in answers.classes}, key=natural_key
    )
    if unknown:
        raise DataError(
            f"{root}: has the class '{printable(unknown[0])}', which the run was not trained on "
            f"({', '.join(map(printable, answers.classes))}); correct or remove its rows"
        )
    return {name: answers.classes.index(grade) for name, grade in graded.items()}


def _rows(
    table: np.ndarray, truth: np.ndarray, shares: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """All scores: of the whole, then the recall and AUC of each class, then the counts of the confusion matrix."""
    recall, auc = recalls(table).tolist(), auc_per_class(truth, shares)
    total = int(table.sum())
    scores: list[tuple[str, str, float | int]] = [
        ("cases", "", total),
        ("quadratic_kappa", "", float(kappa(table))),
        ("accuracy", "", float(np.trace(table) / total)),
        ("balanced_accuracy", "", nan_mean(recall)),
        ("auc", "", nan_mean(auc)),
    ]
    scores += [("recall", name, value) for name, value in zip(classes, recall, strict=True)]
    scores += [("auc", name, value) for name, value in zip(classes, auc, strict=True)]
    scores += [
        (f"taken_for_{other}", name, int(table[i, j]))
        for i, name in enumerate(classes)
        for j, other in enumerate(classes)
    ]
    return [{"score": score, "class": name, "value": value} for score, name, value in scores]


def _show(rows: Sequence[Mapping[str, Any]], table: np.ndarray, classes: Sequence[str]) -> None:
    console = Console(highlight=False)
    scores = Table(box=SIMPLE)
    scores.add_column("score")
    scores.add_column("value", justify="right")
    for row in rows:
        if row["class"] == "":
            value = row["value"]
            text = (
                str(value)
                if isinstance(value, int)
                else "-"
                if math.isnan(value)
                else f"{value:.3f}"
            )
            scores.add_row(row["score"].replace("_", " "), text)
    console.print(scores)
    recall = {row["class"]: row["value"] for row in rows if row["score"] == "recall"}
    matrix = Table(
        title="true class (rows), predicted class (columns)", title_justify="left", box=SIMPLE
    )
    for heading in ("", *classes, "recall"):
        matrix.add_column(Text(printable(heading)), justify="right")
    for name, counts in zip(classes, table.tolist(), strict=True):
        share = "-" if math.isnan(recall[name]) else f"{recall[name]:.3f}"
        # Text: a name in brackets is no style
        matrix.add_row(Text(printable(name)), *map(str, counts), share)
    console.print(matrix)


def _draw(table: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """The confusion matrix as a picture: counts, shaded by the share of their true class."""
    shares = table / np.maximum(1, table.sum(1, keepdims=True))
    edge = max(3.5, 0.7 * len(classes) + 1.5)
    figure = Figure(figsize=(edge, edge), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, counts in enumerate(table.tolist()):
        for j, count in enumerate(counts):
            axes.text(
                j,
                i,
                count,
                ha="center",
                va="center",
                color="white" if shares[i, j] > 0.6 else "black",
            )
    names = [printable(name) for name in classes]
    axes.set_xticks(
        range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0, parse_math=False
    )
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
