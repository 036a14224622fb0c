"""The page of a fine-tuning: its curves, who trained and validated, and what the encoder gave."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfvox.data.preparation.split import Split, read_split_if_present
from selfvox.errors import WeightsError
from selfvox.reports.charts import Chart, Series, draw_chart, points_of
from selfvox.reports.page import Page, number, read_rows
from selfvox.reports.run_facts import (
    Finding,
    RunFiles,
    facts,
    is_running,
    metric_chart,
    read_run,
    shown_settings,
    skipped_finding,
    status_finding,
)
from selfvox.runs.card import ClassifierCard, RegressorCard
from selfvox.runs.weights import read_network_card
from selfvox.training.feature_survival import METRIC
from selfvox.training.kept_weights import VALIDATION_TABLE
from selfvox.training.learning_curve import CLASSIFICATION_SCORES
from selfvox.training.trend import final_drop, late_fall, late_rise

_CALIBRATED = "calibration.csv"
_DICE = "dice_"  # in front of the name of a class
_TARGET = "true target"  # column of a scan with a target


def finetune_page(name: str, folder: Path) -> Page:
    """The page of a fine-tuning run.

    Args:
        name: of the page.
        folder: of the run.
    """
    run = read_run(folder)
    cases = _validation_cases(folder)
    charts = [*_charts(run), *_target_charts(cases)]
    split = read_split_if_present(folder / "split.json")
    subsets = None
    if split is not None:
        subsets = {
            "training": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        }
    context = {
        "findings": [
            *_findings(run, folder, split),
            *_case_findings(cases),
            *_error_findings(run, folder),
        ],
        "facts": {**_network_facts(folder), **facts(run)},
        "settings": shown_settings(run),
        "charts": charts,
        "points": points_of(charts),
        "picture": None,
        "split": subsets,
        "tables": {
            "Scans of the validation, the worst first": cases,
            "Scans of the calibration": read_rows(folder / "network" / _CALIBRATED),
        },
        "refresh": is_running(folder),
        "next": "selfvox predict RUN NEW_SCANS/ --passes 20 --maps entropy --out predictions/",
    }
    return Page(name, f"Fine-tuning {folder.resolve().name}", "run", context)


def _findings(run: RunFiles, folder: Path, split: Split | None) -> list[Finding]:
    findings = [status_finding(run), *skipped_finding(run)]
    try:
        card = read_network_card(folder)
        score = "is not defined" if card.score is None else f"is {card.score:.3f}"
        name = "Dice" if card.score_name == "dice" else card.score_name.replace("_", " ")
        scored = f"their {name} in the validation scans {score}"
        if split is not None and not split.validation:
            scored = "no subject validates, so they have no score"
        findings.append(Finding(f"The kept weights are of step {card.step}; {scored}."))
        findings.append(Finding(f"Encoder: {card.encoder}."))
    except WeightsError:
        findings.append(Finding("There is no network yet."))
    findings += _survival_finding(run)
    problem = run.record.get("lost_problem")
    if problem:
        findings.append(Finding(f"{problem[0].upper()}{problem[1:]}.", True))
    findings += _trend_findings(run)
    return findings


def _survival_finding(run: RunFiles) -> list[Finding]:
    """What the last validation found of the pre-trained features."""
    lines = [line for line in run.lines if any(name.startswith(METRIC) for name in line)]
    if not lines:
        return []
    values = [f"{value:.2f}" for name, value in lines[-1].items() if name.startswith(METRIC)]
    return [
        Finding(
            f"Pre-trained features that are left at step {lines[-1]['step']:.0f}, as linear CKA of "
            f"each level, the finest first (1: all): {', '.join(values)}."
        )
    ]


def _trend_findings(run: RunFiles) -> list[Finding]:
    """Whether the run still improved at its end."""
    steps = run.record.get("steps")
    if run.record.get("status") != "finished" or not steps:
        return []
    for metric in ("dice_mean", "kappa", "balanced_accuracy", "skill"):
        if any(metric in line for line in run.lines):
            rise = late_rise(run.lines, metric, steps)
            drop = final_drop(run.lines, metric)
            if drop is not None:
                return [
                    Finding(
                        f"The last validation score is {drop[0]:.3f} below that of step {drop[1]}: "
                        "by chance, or it was trained for too long."
                    )
                ]
            if rise is None:  # too few validations to tell
                break
            if not rise:
                return [Finding("The validation score did not rise any more at the end.")]
            return [
                Finding(
                    f"The validation score still rose by {rise:.3f} in the last fifth of the "
                    "steps: train longer."
                )
            ]
    if late_fall(run.lines, steps):
        return [Finding("The loss still fell in the last fifth of the steps: train longer.")]
    return []


def _network_facts(folder: Path) -> dict[str, str]:
    try:
        card = read_network_card(folder)
    except WeightsError:
        return {}
    if isinstance(card, RegressorCard):
        return {"encoder": card.encoder, "predicts": "a number of a scan"}
    classes: Any = card.classes
    if isinstance(card, ClassifierCard):
        classes = card.names or card.classes
    names = classes.values() if isinstance(classes, Mapping) else classes
    return {"classes": ", ".join(map(str, names))}


def _validation_cases(folder: Path) -> list[dict[str, str]]:
    """The scores of the validation scans by the kept weights, the worst first."""
    rows = read_rows(folder / "network" / VALIDATION_TABLE)
    try:
        step = str(read_network_card(folder).step)
    except WeightsError:
        return []
    # of a run that was killed between the two files, they are of different weights
    listed = [
        {name.removeprefix(_DICE): value for name, value in row.items() if name != "step"}
        for row in rows
        if row["step"] == step
    ]
    return sorted(listed, key=_order)


def _order(row: Mapping[str, str]) -> tuple[bool, float]:
    """Wrong classes come first, then low scores, or large errors."""
    if _TARGET in row:
        return False, -abs(_target(row, "target") - _target(row, _TARGET))
    if "probability" in row:
        return row["class"] == row["true class"], float(row["probability"])
    return False, _mean_dice(row)


def _target(row: Mapping[str, str], name: str) -> float:
    # a negative number has the quote that keeps spreadsheets from running formulas
    return float(row[name].removeprefix("'"))


def _mean_dice(row: Mapping[str, str]) -> float:
    return statistics.fmean(float(value) for name, value in row.items() if name != "case")


def _case_findings(cases: Sequence[Mapping[str, str]]) -> list[Finding]:
    """How the scores of the validation scans differ."""
    if not cases or _TARGET in cases[0]:
        return []
    if "probability" in cases[0]:
        wrong = sum(row["class"] != row["true class"] for row in cases)
        return [Finding(f"{len(cases) - wrong} of {len(cases)} validation scans are right.")]
    means = [_mean_dice(row) for row in cases]
    if len(cases) == 1:
        return [Finding(f"The mean Dice of the validation scan is {means[0]:.2f}.")]
    return [
        Finding(
            f"The mean Dice of a validation scan is between {means[0]:.2f} ({cases[0]['case']}) "
            f"and {means[-1]:.2f} ({cases[-1]['case']})."
        )
    ]


def _error_findings(run: RunFiles, folder: Path) -> list[Finding]:
    """The error of predicted numbers by the kept weights, and that of a constant."""
    try:
        step = read_network_card(folder).step
    except WeightsError:
        return []
    errors = [
        (line["mean_absolute_error"], line["error_of_a_constant"])
        for line in run.lines
        if line["step"] == step and "mean_absolute_error" in line
    ]
    if not errors:
        return []
    error, constant = errors[-1]
    text = (
        f"The mean absolute error in the validation scans is {number(error)}; a constant, the "
        f"median of the training targets, has {number(constant)}."
    )
    return [Finding(text, error >= constant)]


def _target_charts(cases: Sequence[Mapping[str, str]]) -> list[Chart]:
    """True and predicted numbers of the validation scans, with the line on which they are equal."""
    if not cases or _TARGET not in cases[0]:
        return []
    true = [_target(case, _TARGET) for case in cases]
    ends = [min(true), max(true)]
    predicted = [_target(case, "target") for case in cases]
    names = [case["case"] for case in cases]
    series = [
        Series("scans of the validation", true, predicted, names=names),
        Series("predicted as true", ends, ends, dashed=True),
    ]
    title = "True and predicted targets"
    return [draw_chart("targets", title, series, "true target", "predicted target")]


def _charts(run: RunFiles) -> list[Chart]:
    lines = run.lines
    names = list(dict.fromkeys(name for line in lines for name in line))
    dice = {name: name.removeprefix(_DICE) for name in names if name.startswith(_DICE)}
    scores = {name: name.replace("_", " ") for name in CLASSIFICATION_SCORES if name in names}
    rates = {
        "learning_rate": "learning rate",
        "encoder_learning_rate": "of the encoder",
    }
    errors = {"mean_absolute_error": "of the network"}
    constant = {"error_of_a_constant": "of a constant"}
    title = "Mean absolute error of the validation scans"
    levels = {name: name.removeprefix(METRIC) for name in names if name.startswith(METRIC)}
    survival = {name: f"level {level}" for name, level in levels.items()}
    return [
        *metric_chart("loss", "Loss", lines, {"loss": "loss"}, "loss"),
        *metric_chart("dice", "Dice of the validation scans", lines, dice, "Dice", (0, 1)),
        *metric_chart("class-scores", "Scores of the validation scans", lines, scores, "score"),
        *metric_chart("error", title, lines, errors, "error", dashed=constant),
        *metric_chart(
            "survival", "Pre-trained features that are left", lines, survival, "linear CKA", (0, 1)
        ),
        *metric_chart("rate", "Learning rate", lines, rates, "learning rate"),
    ]
