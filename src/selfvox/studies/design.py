"""A plan as cells: every method and its from-scratch twin, at every number of labels, with every seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.settings.verbs import FINETUNE_STEPS, PRETRAIN_STEPS, Finetune
from selfvox.studies import plan as plans
from selfvox.studies.plan import SCRATCH, Plan, folder_name
from selfvox.training.loop import count_steps


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What is found out of a method before the study begins; kept in `methods.json`."""

    network: dict[str, Any]  # the encoder's architecture, which the twin shares
    store: str  # what it is fine-tuned on, within the study's folder
    pretrain_steps: int
    pretrain_step_s: float
    pretrain_step_flop: float  # 0 where nobody asks
    step_s: float  # of fine-tuning
    step_flop: float
    validation_s: float  # of all validation subjects, once
    test_s: float  # to predict and score all test subjects
    training: int  # labelled subjects that there are to train on
    scans_per_subject: float  # of these, in the mean


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is trained at every number of labels: a method, or a from-scratch twin."""

    name: str
    method: str  # whose facts hold for it, and whose encoder it takes unless it is from scratch
    finetune: dict[str, Any]
    pretrain: dict[str, Any] | str | None = None  # None: from scratch
    twin: str | None = None  # the arm it is compared with
    equal: str | None = None  # the twin at equal compute
    extra_steps: int = (
        0  # of the twin at equal compute: what the pre-training took, in steps of fine-tuning
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of an arm."""

    arm: Arm
    labels: int | None
    fraction: float | None
    seed: int
    pretrain_seed: int | None  # None where nothing is pre-trained for it
    fold: int | None = None

    @property
    def folder(self) -> Path:
        """Its run, within the study's folder."""
        amount = (
            f"{self.labels}-labels" if self.fraction is None else f"{100 * self.fraction:g}-percent"
        )
        twice = "" if self.pretrain_seed is None else f"-pretrain-{self.pretrain_seed}"
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return (
            Path("cells") / folder_name(self.arm.name) / f"{amount}-seed-{self.seed}{twice}{fold}"
        )

    def __str__(self) -> str:
        amount = (
            f"{self.labels} labels"
            if self.fraction is None
            else f"{100 * self.fraction:g} % of the labels"
        )
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.arm.name}, {amount}, seed {self.seed}{fold}"


def methods_to_time(plan: Plan) -> list[str]:
    """The methods that something must be found out of: all but a `scratch` that is only a twin's name."""
    own = [name for name in plan.methods if plan.methods[name] != SCRATCH]
    return own or list(plan.methods)


def lead_method(plan: Plan, name: str) -> str:
    """The first method of the same pre-training, which is done once for all of them."""
    wanted = plans.resolve_method(plan, name).pretrain
    return next(
        other for other in plan.methods if plans.resolve_method(plan, other).pretrain == wanted
    )


def pretraining(plan: Plan, method: str, seed: int, fold: int | None) -> Path:
    """The folder of a method's pre-training, within the study's folder."""
    apart = "" if fold is None or other_scans(plan, method) else f"-fold-{fold}"
    return Path("pretrain") / f"{folder_name(lead_method(plan, method))}-seed-{seed}{apart}"


def other_scans(plan: Plan, method: str) -> bool:
    """Whether a method is pre-trained on other scans than those that may be trained on."""
    found = plans.resolve_method(plan, method).pretrain
    return plan.transductive or (isinstance(found, dict) and "scans" in found)


def list_arms(plan: Plan, facts: dict[str, MethodFacts]) -> list[Arm]:
    """The methods of a plan and the twins they are compared with, each twin before the first that needs it.

    A twin has its method's network, data and fine-tuning, and random weights, which stand still where the method's do;
    methods that agree in these share one. A name that the plan gives to a method of its own is no twin's.
    """
    found: dict[str, Arm] = {}
    twins: dict[str, str] = {}
    plain = next((name for name, value in plan.methods.items() if value == SCRATCH), SCRATCH)
    taken = {folder_name(name) for name, value in plan.methods.items() if value != SCRATCH}

    def twin_of(key: str, wanted: str, longer: str) -> str:
        if key not in twins:
            twins[key] = wanted if folder_name(wanted) not in taken else longer
            while folder_name(twins[key]) in taken:
                twins[key] += " twin"
            taken.add(folder_name(twins[key]))
        return twins[key]

    for name in methods_to_time(plan):
        own = plans.resolve_method(plan, name)
        if own.pretrain is None:
            found[name] = Arm(name=name, method=name, finetune=dict(own.finetune))
            continue
        if name not in facts:  # it was added, and not yet begun
            continue
        like = _from_scratch(own.finetune) | {"network": facts[name].network}
        base = f"2D-{plain}" if own.finetune.get("slices") else plain
        base = f"{base} frozen" if stands_still(own.finetune) else base
        key = json.dumps([like, facts[name].store], sort_keys=True)
        twin = twin_of(key, base, f"{base} for {name}")
        found.setdefault(twin, Arm(name=twin, method=name, finetune=like))
        equal = None
        # random features learn nothing from more steps
        if plan.equal_compute and facts[name].pretrain_steps and not stands_still(own.finetune):
            extra = _pretraining_in_steps(facts[name], by_time=plan.equal_compute == "time")
            equal = f"{base} equal compute"
            equal = twin_of(json.dumps([key, extra]), equal, f"{equal} to {name}")
            found.setdefault(
                equal, Arm(name=equal, method=name, finetune=like, twin=twin, extra_steps=extra)
            )
        found[name] = Arm(
            name=name,
            method=name,
            finetune=dict(own.finetune),
            pretrain=own.pretrain,
            twin=twin,
            equal=equal,
        )
    return list(found.values())


def list_cells(plan: Plan, facts: dict[str, MethodFacts]) -> list[Cell]:
    """All cells, seed by seed, so that a study that is stopped half way can compare what it has."""
    amounts = [(count, None) for count in plan.labels or ()] + [
        (None, share) for share in plan.fractions or ()
    ]
    return [
        Cell(
            arm=arm,
            labels=labels,
            fraction=fraction,
            seed=seed,
            pretrain_seed=pretrain_seed,
            fold=fold,
        )
        for seed in plan.seeds
        for fold in ([None] if plan.folds is None else range(plan.folds))
        for labels, fraction in amounts
        for arm in list_arms(plan, facts)
        for pretrain_seed in (plan.pretrain_seeds if isinstance(arm.pretrain, dict) else [None])
    ]


def finetune_settings(plan: Plan, cell: Cell, facts: MethodFacts) -> dict[str, Any]:
    """Settings of the cell's `finetune`, its paths aside."""
    settings = plans.scaled(cell.arm.finetune, plan.scale, FINETUNE_STEPS)
    if cell.arm.extra_steps:
        settings["steps"] = steps(settings, cell, facts) + cell.arm.extra_steps
        settings.pop("epochs", None)
    amount = {"labels": cell.labels} if cell.fraction is None else {"fraction": cell.fraction}
    return {**settings, **amount, "seed": cell.seed, "subset_seed": cell.seed}


def steps(settings: Mapping[str, Any], cell: Cell, facts: MethodFacts) -> int:
    """Steps of a cell's fine-tuning; where it counts epochs, of as many scans as its subjects have in the mean."""
    count = cell.labels or max(1, round((cell.fraction or 1) * facts.training))
    scans, batch = (
        round(count * facts.scans_per_subject),
        int(settings.get("batch", Finetune.batch)),
    )
    epochs = None if settings.get("epochs") is None else float(settings["epochs"])
    return count_steps(int(settings.get("steps") or FINETUNE_STEPS), epochs, scans, batch)


def stands_still(finetune: Mapping[str, Any]) -> bool:
    """Whether the encoder is never trained."""
    return finetune.get("freeze") == "always"


def pretrain_settings(plan: Plan, method: str) -> dict[str, Any]:
    """Settings of the method's `pretrain`, its paths and seed aside."""
    found = plans.resolve_method(plan, method).pretrain
    assert isinstance(found, dict)
    own = {name: value for name, value in found.items() if name not in ("scans", "source")}
    return plans.scaled(own, plan.scale, PRETRAIN_STEPS)


def _pretraining_in_steps(facts: MethodFacts, by_time: bool) -> int:
    """How many steps of fine-tuning cost as much as the whole pre-training."""
    step = (
        facts.pretrain_step_s / facts.step_s
        if by_time
        else facts.pretrain_step_flop / facts.step_flop
    )
    return math.ceil(facts.pretrain_steps * step)


def _from_scratch(finetune: dict[str, Any]) -> dict[str, Any]:
    """What of a method's fine-tuning its twin shares; features that stand still are compared with random ones."""
    left_out = (
        {"warmup", "first_conv"} if stands_still(finetune) else {"freeze", "warmup", "first_conv"}
    )
    return {name: value for name, value in finetune.items() if name not in left_out}
