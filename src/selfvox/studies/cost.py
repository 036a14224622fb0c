"""What a study will take, found out by a few steps of each method before it begins."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from selfvox.commands.finetune import finetune
from selfvox.commands.pretrain import pretrain
from selfvox.data.formats import strict_json
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import Store, open_store
from selfvox.runs import atomic_files
from selfvox.runs.progress import echo, format_seconds, redirect_output
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import load_part
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Finetune, Pretrain
from selfvox.studies import design as layout
from selfvox.studies import plan as plans
from selfvox.studies.design import Cell, MethodFacts
from selfvox.studies.plan import Plan
from selfvox.studies.run_cell import score
from selfvox.studies.run_once import study_lock
from selfvox.studies.stores import card_of, fold_store, scans_of, store_of, trainable
from selfvox.training.best_checkpoint import validation_interval
from selfvox.training.pretrain_plan import pretrain_steps

FORMAT = 1
WIDTH = 100  # columns that a row needs
STEPS = 5  # that are timed


def measure_facts(plan: Plan, out: Path) -> dict[str, MethodFacts]:
    """What is known of each method, from `methods.json`; what is not yet known is found out, once for all processes."""
    file, needed = out / "methods.json", layout.methods_to_time(plan)
    with study_lock(out, "trial", wait=True):
        known = strict_json.read_json(file)["methods"] if file.exists() else {}
        for name in needed:
            if name in known and (known[name]["step_flop"] or plan.equal_compute is not True):
                continue
            echo(f"timing a few steps of {name}")
            known[name] = dataclasses.asdict(_tried(plan, out, name))
            atomic_files.write_json(file, {"format": FORMAT, "methods": known})
    return {name: MethodFacts(**known[name]) for name in needed}


def timed_methods(out: Path) -> set[str]:
    """The methods that something was found out of."""
    file = out / "methods.json"
    return set(strict_json.read_json(file)["methods"]) if file.exists() else set()


def forget_methods(out: Path, methods: Collection[str]) -> None:
    """Let these methods be tried anew."""
    if timed_methods(out) & set(methods):
        left = strict_json.read_json(out / "methods.json")["methods"]
        left = {name: value for name, value in left.items() if name not in methods}
        atomic_files.write_json(out / "methods.json", {"format": FORMAT, "methods": left})


def _tried(plan: Plan, out: Path, name: str) -> MethodFacts:
    """A method's facts, from short runs in a folder that is removed again."""
    folder = out / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found, runs = (
        plans.resolve_method(plan, name).pretrain,
        _Runs(folder, plan.equal_compute is True),
    )
    step_s, flop, steps = 0.0, 0.0, 0
    network: dict[str, Any] = {}
    with redirect_output(folder / "log.txt"):
        if isinstance(found, dict):
            settings = layout.pretrain_settings(plan, name)
            scans = scans_of(plan, name, out, None if plan.folds is None else 0)
            fixed = {**_without_steps(settings), "scans": scans}
            images = int(settings.get("batch", Pretrain.batch)) * int(
                settings.get("accumulate", Pretrain.accumulate)
            )
            step_s, _, flop = runs.measure(
                lambda how: pretrain(resolve(Pretrain, {**fixed, **how})), images
            )
            network = {"network": card_of(runs.last)["network"]}
            steps = _pretrain_steps(settings, scans)
        elif isinstance(found, str):
            network = {"network": card_of(Path(found))["network"]}
        store = store_of(plan, name, out)
        split_store = open_store(fold_store(out / store, None if plan.folds is None else 0))
        like = {
            **_without_steps(plans.resolve_method(plan, name).finetune),
            **network,
            "labelled": split_store.path,
        }
        tuning_s, validation_s, tuning_flop = runs.measure(
            lambda how: finetune(
                resolve(
                    Finetune, {**like, **how, "encoder": "none", "validate_every": how["steps"]}
                )
            ),
            int(like.get("batch", Finetune.batch)),
        )
        test_s = _test_seconds(plan, runs.last, split_store)
        network = load_part(runs.last / "network", "network")[1]["network"]
    shutil.rmtree(folder)
    subjects = trainable(split_store)
    return MethodFacts(
        network=network,
        store=store,
        pretrain_steps=steps,
        pretrain_step_s=step_s,
        pretrain_step_flop=flop,
        step_s=tuning_s,
        step_flop=tuning_flop,
        validation_s=validation_s,
        test_s=test_s,
        training=len(subjects),
        scans_per_subject=sum(
            case.is_labelled and case.subject in subjects for case in split_store.cases
        )
        / len(subjects),
    )


class _Runs:
    """Short runs of one verb after another, each in a folder of its own."""

    def __init__(self, folder: Path, count_flop: bool):
        self.folder, self.count_flop, self.number = folder, count_flop, 0

    @property
    def last(self) -> Path:
        """The folder of the last run."""
        return self.folder / str(self.number)

    def measure(
        self, run: Callable[[dict[str, Any]], Any], images: int
    ) -> tuple[float, float, float]:
        """Seconds of a step of so many images, seconds of all else, and floating-point operations of a step.

        The run's own clock times its steps: the difference between a longer run and a shorter one would be mostly how
        the rest of them, which takes longer than a few steps, happened to differ.
        """

        def go(steps: int) -> float:
            self.number += 1
            began = time.monotonic()
            run({"out": self.last, "steps": steps})
            return time.monotonic() - began

        def operations(steps: int) -> int:
            with FlopCounterMode(display=False) as counter:
                go(steps)
            return int(counter.get_total_flops())

        go(1)  # the first step of a process takes longer
        whole = go(STEPS)
        speed = read_metrics(self.last)[-1].get(
            "images_per_s"
        )  # none where the last step was skipped
        step_s = images / speed if speed else whole / STEPS
        flop = operations(2) - operations(1) if self.count_flop else 0
        return step_s, max(0.0, whole - STEPS * step_s), float(flop)


def _without_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that say how long to train; what never trains its encoder is timed like that."""
    left_out = ["steps", "epochs", "validate_every", "warmup", "probe"]
    if not layout.stands_still(settings):
        left_out.append("freeze")
    return {name: value for name, value in settings.items() if name not in left_out}


def _pretrain_steps(settings: Mapping[str, Any], scans: Path) -> int:
    count = len(open_store(scans).without_test_subjects())
    return pretrain_steps(resolve(Pretrain, {**settings, "scans": "-", "out": "-"}), count, 1)


def _test_seconds(plan: Plan, run: Path, store: Store) -> float:
    """Predicting and scoring all test subjects, from the first of them and from two more, which begin no quicker."""
    split, took = splits.read_split(run / "split.json"), []
    for count in (1, 3):
        splits.write_split(dataclasses.replace(split, test=split.test[:count]), run / "split.json")
        began = time.monotonic()
        score(plan, run, store)
        took.append(time.monotonic() - began)
    return took[0] + (len(split.test) - 1) * max(0.0, took[1] - took[0])


# what it will take


def seconds(plan: Plan, cell: Cell, facts: MethodFacts) -> float:
    """What a cell will take, its pre-training aside."""
    settings = layout.finetune_settings(plan, cell, facts)
    steps = layout.steps(settings, cell, facts)
    validations = math.ceil(steps / validation_interval(settings.get("validate_every"), steps))
    return steps * facts.step_s + validations * facts.validation_s + facts.test_s


def pretrain_seconds(facts: MethodFacts) -> float:
    """What a pre-training will take."""
    return facts.pretrain_steps * facts.pretrain_step_s


def show_costs(plan: Plan, facts: dict[str, MethodFacts]) -> None:
    """Print what each arm will take, and all of it, from the timed steps."""
    table = Table(
        title="What it will take, from a few timed steps", title_justify="left", box=SIMPLE
    )
    for heading in ("", "pre-training", "a step", "one cell", "cells", "all"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    cells, total, counted = layout.list_cells(plan, facts), 0.0, set[str]()
    for arm in layout.list_arms(plan, facts):
        known, own = facts[arm.method], [cell for cell in cells if cell.arm.name == arm.name]
        each = [seconds(plan, cell, known) for cell in own]
        times, before, leader = 0, 0.0, layout.lead_method(plan, arm.method)
        if isinstance(arm.pretrain, dict) and leader not in counted:
            counted.add(leader)
            times = len(plan.pretrain_seeds) * (
                1 if layout.other_scans(plan, arm.method) else plan.folds or 1
            )
            before = pretrain_seconds(known) * times
        total += before + sum(each)
        span = " to ".join(dict.fromkeys(format_seconds(value) for value in (min(each), max(each))))
        shown = f"{times} x {format_seconds(pretrain_seconds(known))}" if before else "-"
        table.add_row(
            arm.name,
            shown,
            f"{known.step_s:.3g} s",
            span,
            str(len(own)),
            format_seconds(before + sum(each)),
        )
    table.add_section()
    table.add_row("all", "", "", "", str(len(cells)), format_seconds(total))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
