"""The page of a fine-tuning: its curves, who trained and validated, and what the encoder gave."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.data.preparation.split import read_split_if_present
from selfvox.errors import WeightsError
from selfvox.reports.charts import Chart, points_of
from selfvox.reports.page import Page
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
from selfvox.runs.weights import read_network_card
from selfvox.training.learning_curve import CLASSIFICATION_SCORES
from selfvox.training.trend import late_fall, late_rise

_CALIBRATED = "calibration.csv"


def finetune_page(name: str, folder: Path) -> Page:
    """The page of a fine-tuning run.

    Args:
        name: of the page.
        folder: of the run.
    """
    run = read_run(folder)
    charts = _charts(run)
    split = read_split_if_present(folder / "split.json")
    subsets = None
    if split is not None:
        subsets = {
            "training": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        }
    context = {
        "findings": _findings(run, folder),
        "facts": {**_network_facts(folder), **facts(run)},
        "settings": shown_settings(run),
        "charts": charts,
        "points": points_of(charts),
        "picture": None,
        "split": subsets,
        "cases": _validation_cases(folder),
        "refresh": is_running(folder),
        "next": "selfvox predict RUN NEW_SCANS/ --passes 20 --maps entropy --out predictions/",
    }
    return Page(name, f"Fine-tuning {folder.resolve().name}", "run", context)


def _findings(run: RunFiles, folder: Path) -> list[Finding]:
    findings = [status_finding(run), *skipped_finding(run)]
    try:
        card = read_network_card(folder)
        score = "is not defined" if card.score is None else f"is {card.score:.3f}"
        name = card.score_name.replace("_", " ")
        findings.append(Finding(f"The kept weights are of step {card.step}; their {name} {score}."))
    except WeightsError:
        findings.append(Finding("There is no network yet."))
    lost = run.record.get("lost_classes_saved") or ()
    if lost:
        findings.append(
            Finding(
                f"Dice of {', '.join(lost)} is 0 in every validation scan, while others are "
                "learnt.",
                True,
            )
        )
    findings += _trend_findings(run)
    return findings


def _trend_findings(run: RunFiles) -> list[Finding]:
    """Whether the run still improved at its end."""
    steps = run.record.get("steps")
    if run.record.get("status") != "finished" or not steps:
        return []
    for metric in ("dice_mean", "kappa", "balanced_accuracy"):
        if any(metric in line for line in run.lines):
            rise = late_rise(run.lines, metric, steps)
            if rise is None:
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
    classes: Any = card.classes
    names = classes.values() if isinstance(classes, Mapping) else classes
    return {"encoder": card.encoder, "classes": ", ".join(map(str, names))}


def _validation_cases(folder: Path) -> list[Mapping[str, str]]:
    """The scans that the network was calibrated by, where `calibrate` measured them."""
    path = folder / "network" / _CALIBRATED
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _charts(run: RunFiles) -> list[Chart]:
    lines = run.lines
    names = list(dict.fromkeys(name for line in lines for name in line))
    dice = {name: name.removeprefix("dice_") for name in names if name.startswith("dice")}
    scores = {name: name.replace("_", " ") for name in CLASSIFICATION_SCORES if name in names}
    rates = {
        "learning_rate": "learning rate",
        "encoder_learning_rate": "of the encoder",
    }
    return [
        *metric_chart("loss", "Loss", lines, {"loss": "loss"}, "loss"),
        *metric_chart("dice", "Dice of the validation scans", lines, dice, "Dice", (0, 1)),
        *metric_chart("class-scores", "Scores of the validation scans", lines, scores, "score"),
        *metric_chart("rate", "Learning rate", lines, rates, "learning rate"),
    ]
