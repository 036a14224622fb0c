"""The page of a pre-training: whether it learns, in words and curves, and what it is asked."""

from __future__ import annotations

import statistics
from pathlib import Path

from selfvox.reports.bundle import Bundle
from selfvox.reports.charts import Chart, points_of
from selfvox.reports.page import Page
from selfvox.reports.preview_picture import preview_bytes
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
from selfvox.training.embedding_health import Score, chance_scores
from selfvox.training.monitor import AT_CHANCE
from selfvox.training.trend import late_fall

_RECENT = 5  # lines that a score is the mean of


def pretrain_page(name: str, folder: Path, bundle: Bundle) -> Page:
    """The page of a pre-training run.

    Args:
        name: of the page.
        folder: of the run.
        bundle: of the report.
    """
    run = read_run(folder)
    picture = preview_bytes(folder)
    address = None if picture is None else bundle.add_picture(f"{name}-question", picture, "png")
    charts = _charts(run)
    context = {
        "findings": _findings(run),
        "facts": facts(run),
        "settings": shown_settings(run),
        "charts": charts,
        "points": points_of(charts),
        "picture": address,
        "split": None,
        "tables": {},
        "refresh": is_running(folder),
        "next": "selfvox finetune LABELLED/ --encoder RUN --out runs/seg",
    }
    return Page(name, f"Pre-training {folder.resolve().name}", "run", context)


def _findings(run: RunFiles) -> list[Finding]:
    findings = [status_finding(run), *skipped_finding(run)]
    warnings = run.record.get("warnings") or {}
    findings += [Finding(text, True) for text in warnings.values()]
    findings += _score_findings(run)
    findings += _probe_findings(run)
    spreads = [line["health/spread"] for line in run.lines if "health/spread" in line]
    if spreads:
        findings.append(
            Finding(
                f"The embeddings of different crops have a spread of {spreads[-1]:.2f} (at first "
                f"{spreads[0]:.2f}): 0 is collapsed, 1 is ideal."
            )
        )
    if run.record.get("status") == "finished" and late_fall(run.lines, run.record["steps"]):
        findings.append(
            Finding("The loss still fell in the last fifth of the steps: train longer.")
        )
    damaged = run.record.get("damaged_scans") or ()
    if damaged:
        findings.append(Finding(f"{len(damaged)} damaged scans were left out.", True))
    return findings


def _score_findings(run: RunFiles) -> list[Finding]:
    """The last scores of the task, with what random guesses reach."""
    scored = [line for line in run.lines if chance_scores(line)]
    findings = []
    for name in chance_scores(scored[-1]) if scored else ():
        scores: list[Score] = [chance_scores(line)[name] for line in scored[-_RECENT:]]
        value = statistics.fmean(score.value for score in scores)
        chance = statistics.fmean(score.chance for score in scores)
        is_learnt = Score(value, chance).above_chance > AT_CHANCE
        findings.append(
            Finding(
                f"{name.capitalize()} is {value:.2f} at the end; random guesses reach "
                f"{chance:.2f}{'' if is_learnt else ', so the task is not learnt yet'}.",
                not is_learnt,
            )
        )
    return findings


def _probe_findings(run: RunFiles) -> list[Finding]:
    findings = []
    for kind in ("linear", "knn"):
        value = _last(run, f"probe/{kind}")
        untrained = _last(run, f"probe/untrained_{kind}")
        chance = _last(run, "probe/chance")
        if value is not None and untrained is not None and chance is not None:
            findings.append(
                Finding(
                    f"A {kind} probe of the frozen encoder scores {value:.2f}; the untrained "
                    f"encoder {untrained:.2f}, chance {chance:.2f}.",
                    value <= untrained,
                )
            )
    return findings


def _charts(run: RunFiles) -> list[Chart]:
    lines = run.lines
    names = list(dict.fromkeys(name for line in lines for name in line))
    losses = {name: name for name in names if name == "loss" or name.endswith("/loss")}
    chances = {
        name: name.removesuffix("loss_chance") + "chance"
        for name in names
        if name.endswith("loss_chance")
    }
    scored = next((line for line in lines if chance_scores(line)), {})
    scores = {name: name for name in chance_scores(scored)}
    score_chances = {
        name.replace("accuracy", "chance"): "chance" for name in scores if "accuracy" in name
    }
    untrained = {f"probe/untrained_{kind}": f"{kind}, untrained" for kind in ("linear", "knn")}
    return [
        *metric_chart("loss", "Loss", lines, losses, "loss", dashed=chances),
        *metric_chart("score", "Score of the task", lines, scores, "score", (0, 1), score_chances),
        *metric_chart(
            "probe",
            "Probe of the frozen encoder",
            lines,
            {"probe/linear": "linear", "probe/knn": "nearest neighbours"},
            "balanced accuracy",
            (0, 1),
            {**untrained, "probe/chance": "chance"},
        ),
        *metric_chart(
            "spread", "Do embeddings differ?", lines, {"health/spread": "spread"}, "spread"
        ),
        *metric_chart(
            "rank", "In how many directions?", lines, {"health/rank": "rank"}, "effective rank"
        ),
        *metric_chart("rate", "Learning rate", lines, {"learning_rate": "rate"}, "learning rate"),
    ]


def _last(run: RunFiles, name: str) -> float | None:
    return next((line[name] for line in reversed(run.lines) if name in line), None)
