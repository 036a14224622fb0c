"""The cells of a study: every method and its from-scratch twin, by number of labels and seed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfvox.settings.verbs import FINETUNE_STEPS, PRETRAIN_STEPS, Finetune
from selfvox.studies.facts import MethodFacts
from selfvox.studies.plan import (
    SCRATCH,
    Method,
    Plan,
    baseline_name,
    folder_name,
    is_frozen,
    scale_steps,
)
from selfvox.training.schedule import count_steps


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is trained at every number of labels: a method, or a from-scratch twin."""

    name: str
    method: Method  # of a twin: the first method it is compared with
    finetune: dict[str, Any]
    pretrain: dict[str, Any] | str | None = None  # None: from scratch
    transfer: str = "all"  # what is taken from the pre-training
    twin: str | None = None  # the arm it is compared with
    equal: str | None = None  # the twin at equal compute
    # of the twin at equal compute: the cost of the pre-training, in steps of fine-tuning
    extra_steps: int = 0


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
        if self.fraction is None:
            amount = f"{self.labels}-labels"
        else:
            amount = f"{100 * self.fraction:g}-percent"
        pretrain = "" if self.pretrain_seed is None else f"-pretrain-{self.pretrain_seed}"
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        run = f"{amount}-seed-{self.seed}{pretrain}{fold}"
        return Path("cells") / folder_name(self.arm.name) / run

    def __str__(self) -> str:
        if self.fraction is None:
            amount = f"{self.labels} label{'' if self.labels == 1 else 's'}"
        else:
            amount = f"{100 * self.fraction:g} % of the labels"
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.arm.name}, {amount}, seed {self.seed}{fold}"


def list_arms(plan: Plan, facts: Mapping[str, MethodFacts]) -> list[Arm]:
    """The methods of a plan and the twins they are compared with, twins before their first method.

    Registration alone and predictions made elsewhere come last; their twin is the plain network
    from scratch, or where there is none, the first that is trained from scratch.

    A twin has its method's network, data and fine-tuning, and random weights; it is frozen if the
    method is. Methods that agree in these share one twin. Methods without facts are left out.
    """
    arms: dict[str, Arm] = {}
    names = _TwinNames(plan)
    for method in plan.trained_methods:
        if method.pretrain is None:
            arms[method.name] = Arm(name=method.name, method=method, finetune=dict(method.finetune))
        elif method.name in facts:  # one that was just added to the plan is not measured yet
            for arm in _arms_of(plan, method, facts[method.name], names):
                arms.setdefault(arm.name, arm)
    baselines = [arm.name for arm in arms.values() if arm.pretrain is None]
    twin = names.base if names.base in arms else next(iter(baselines), None)
    for method in plan.untrained_methods:
        arms[method.name] = Arm(name=method.name, method=method, finetune={}, twin=twin)
    return list(arms.values())


class _TwinNames:
    """Names the twins: one name for each combination of settings, none that a method has."""

    def __init__(self, plan: Plan):
        methods = plan.resolved_methods
        plain = [method.name for method in methods if method.is_plain_scratch]
        self.base = plain[0] if plain else SCRATCH
        self._names: dict[str, str] = {}
        self._folders = {
            folder_name(method.name) for method in methods if not method.is_plain_scratch
        }

    def choose(self, settings: str, preferred: str, fallback: str) -> str:
        """The name of the twin with these settings; `fallback` if the preferred name is taken."""
        if settings not in self._names:
            name = fallback if folder_name(preferred) in self._folders else preferred
            while folder_name(name) in self._folders:
                name += " twin"
            self._names[settings] = name
            self._folders.add(folder_name(name))
        return self._names[settings]


def _arms_of(plan: Plan, method: Method, facts: MethodFacts, names: _TwinNames) -> list[Arm]:
    """A pre-trained method, after its twin and its twin at equal compute."""
    frozen = is_frozen(method.finetune)
    finetune = _shared_with_twin(method.finetune) | {"network": facts.network}
    base = baseline_name(names.base, method.finetune)
    # twins of equal settings are one twin, which is trained once
    settings = json.dumps([finetune, facts.store], sort_keys=True)
    twin = names.choose(settings, base, f"{base} for {method.name}")
    arms = [Arm(name=twin, method=method, finetune=finetune)]
    equal = None
    # random features that stay frozen learn nothing from more steps
    if plan.equal_compute and facts.pretrain_steps and not frozen:
        cost = _pretraining_in_steps(facts, by_time=plan.equal_compute == "time")
        # each of them is longer
        extra = math.ceil(cost / trainings(method.finetune))
        preferred = f"{base} equal compute"
        equal = names.choose(
            json.dumps([settings, extra]), preferred, f"{preferred} to {method.name}"
        )
        arms.append(Arm(name=equal, method=method, finetune=finetune, twin=twin, extra_steps=extra))
    arms.append(
        Arm(
            name=method.name,
            method=method,
            finetune=dict(method.finetune),
            pretrain=method.pretrain,
            transfer=method.transfer,
            twin=twin,
            equal=equal,
        )
    )
    return arms


def _shared_with_twin(finetune: Mapping[str, Any]) -> dict[str, Any]:
    """The fine-tuning settings that a twin shares: those that do not concern loaded weights.

    Frozen features are compared with frozen random ones.
    """
    excluded = {"warmup", "schedule", "encoder_lr", "first_conv"}
    if not is_frozen(finetune):
        excluded.add("freeze")
    return {name: value for name, value in finetune.items() if name not in excluded}


def trainings(finetune: Mapping[str, Any]) -> int:
    """How often a fine-tuning trains: a network that teaches unlabelled scans is trained before."""
    if finetune.get("unlabelled") and finetune.get("teacher") in ("network", "both"):
        return int(finetune.get("rounds", Finetune.rounds)) + 1
    return 1


def _pretraining_in_steps(facts: MethodFacts, by_time: bool) -> int:
    """How many steps of fine-tuning cost as much as the whole pre-training."""
    if by_time:
        cost = facts.pretrain_step_s / facts.step_s
    else:
        cost = facts.pretrain_step_flop / facts.step_flop
    return math.ceil(facts.pretrain_steps * cost)


def list_cells(plan: Plan, facts: Mapping[str, MethodFacts]) -> list[Cell]:
    """All cells, seed by seed, so that a study that is stopped half way can compare what it has."""
    arms = list_arms(plan, facts)
    cells = []
    for seed, fold, amount in itertools.product(plan.seeds, fold_numbers(plan), amounts(plan)):
        labels, fraction = amount
        for arm in arms:
            if seed != plan.seeds[0] and not arm.method.has_draws:
                continue
            for pretrain_seed in _pretrain_seeds(plan, arm):
                cell = Cell(
                    arm=arm,
                    labels=labels,
                    fraction=fraction,
                    seed=seed,
                    pretrain_seed=pretrain_seed,
                    fold=fold,
                )
                cells.append(cell)
    return cells


def amounts(plan: Plan) -> list[tuple[int | None, float | None]]:
    """The numbers of labels of a plan, or their shares; of each pair one is None."""
    counts: list[tuple[int | None, float | None]] = [(count, None) for count in plan.labels or ()]
    return counts + [(None, share) for share in plan.fractions or ()]


def fold_numbers(plan: Plan) -> Sequence[int | None]:
    """The folds of a plan; one None where it has a test set instead."""
    return [None] if plan.folds is None else range(plan.folds)


def _pretrain_seeds(plan: Plan, arm: Arm) -> Sequence[int | None]:
    return plan.pretrain_seeds if isinstance(arm.pretrain, dict) else [None]


def pretrain_folder(plan: Plan, method: Method, seed: int, fold: int | None) -> Path:
    """The run of a method's pre-training, within the study's folder."""
    name = f"{folder_name(method.pretrained_as)}-seed-{seed}"
    if fold is not None and not sees_other_scans(plan, method):
        name = f"{name}-fold-{fold}"
    return Path("pretrain") / name


def sees_other_scans(plan: Plan, method: Method) -> bool:
    """Whether a method is pre-trained on scans other than those of the training subjects.

    Such a pre-training is the same in all folds.
    """
    return plan.transductive or method.scans_as is not None


def finetune_settings(plan: Plan, cell: Cell, facts: MethodFacts) -> dict[str, Any]:
    """Settings of the cell's `finetune`, except its paths."""
    settings = scale_steps(cell.arm.finetune, plan.scale, FINETUNE_STEPS)
    if cell.arm.extra_steps:
        settings["steps"] = finetune_steps(settings, cell, facts) + cell.arm.extra_steps
        settings.pop("epochs", None)
    amount = {"labels": cell.labels} if cell.fraction is None else {"fraction": cell.fraction}
    # one seed for the subset too: runs differ in everything that chance decides
    return {**settings, **amount, "seed": cell.seed, "subset_seed": cell.seed}


def finetune_steps(settings: Mapping[str, Any], cell: Cell, facts: MethodFacts) -> int:
    """Steps of a cell's fine-tuning; epochs count the mean number of scans of its subjects."""
    subjects = cell.labels or max(1, round((cell.fraction or 1) * facts.training))
    scans = round(subjects * facts.scans_per_subject)
    batch = int(settings.get("batch", Finetune.batch))
    epochs = None if settings.get("epochs") is None else float(settings["epochs"])
    return count_steps(int(settings.get("steps") or FINETUNE_STEPS), epochs, scans, batch)


def pretrain_settings(plan: Plan, method: Method) -> dict[str, Any]:
    """Settings of the method's `pretrain`, except its paths and seed."""
    assert isinstance(method.pretrain, dict)
    settings = {
        name: value for name, value in method.pretrain.items() if name not in ("scans", "source")
    }
    return scale_steps(settings, plan.scale, PRETRAIN_STEPS)
