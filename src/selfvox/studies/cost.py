"""What a study costs: estimated times of a cell, of each arm and of all, by what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from selfvox.runs.progress import format_seconds
from selfvox.studies.design import (
    Arm,
    Cell,
    finetune_settings,
    finetune_steps,
    list_arms,
    list_cells,
    sees_other_scans,
    trainings,
)
from selfvox.studies.facts import MethodFacts
from selfvox.studies.plan import Plan
from selfvox.training.kept_weights import validation_steps

WIDTH = 100  # columns that a row needs


def cell_seconds(plan: Plan, cell: Cell, facts: MethodFacts) -> float:
    """Estimated seconds of a cell, without its pre-training."""
    method = cell.arm.method
    if not method.is_network:
        subjects = cell.labels or max(1, round((cell.fraction or 1) * facts.training))
        return facts.test_s * min(subjects, method.atlases or 1)
    settings = finetune_settings(plan, cell, facts)
    steps = finetune_steps(settings, cell, facts)
    validations = validation_steps(settings.get("validate_every"), steps)
    training_s = steps * facts.step_s + len(validations) * facts.validation_s
    return trainings(settings) * training_s + facts.teacher_s + facts.test_s


def pretrain_seconds(facts: MethodFacts) -> float:
    """Estimated seconds of a pre-training."""
    return facts.pretrain_steps * facts.pretrain_step_s


def show_costs(plan: Plan, facts: Mapping[str, MethodFacts]) -> None:
    """Print the estimated time of each arm, and of the whole study."""
    table = Table(title="Estimated times, from a few timed steps", title_justify="left", box=SIMPLE)
    for heading in ("", "pre-training", "a step", "one cell", "cells", "all"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    cells = list_cells(plan, facts)
    total = 0.0
    counted: set[str] = set()
    for arm in list_arms(plan, facts):
        method_facts = facts[arm.method.name]
        seconds = [
            cell_seconds(plan, cell, method_facts) for cell in cells if cell.arm.name == arm.name
        ]
        once_s = pretrain_seconds(method_facts)
        count = _pretrainings(plan, arm) if arm.method.pretrained_as not in counted else 0
        if count:
            counted.add(arm.method.pretrained_as)
        arm_s = count * once_s + sum(seconds)
        total += arm_s
        # dict.fromkeys: one time where all cells take the same
        times = dict.fromkeys(format_seconds(value) for value in (min(seconds), max(seconds)))
        table.add_row(
            arm.name,
            f"{count} x {format_seconds(once_s)}" if count * once_s else "-",
            f"{method_facts.step_s:.3g} s" if method_facts.step_s else "-",
            " to ".join(times),
            str(len(seconds)),
            format_seconds(arm_s),
        )
    table.add_section()
    table.add_row("all", "", "", "", str(len(cells)), format_seconds(total))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)


def _pretrainings(plan: Plan, arm: Arm) -> int:
    """How often the study pre-trains for an arm: for each seed, and each fold that differs."""
    if not isinstance(arm.pretrain, dict):
        return 0
    folds = 1 if sees_other_scans(plan, arm.method) else plan.folds or 1
    return len(plan.pretrain_seeds) * folds
