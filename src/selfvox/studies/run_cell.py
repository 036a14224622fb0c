"""The work of a study: pre-trainings and cells, made by the verbs' own functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.commands.finetune import finetune
from selfvox.commands.pretrain import pretrain
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import open_store
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Finetune, Pretrain
from selfvox.studies.design import (
    Cell,
    finetune_settings,
    pretrain_folder,
    pretrain_settings,
)
from selfvox.studies.facts import MethodFacts
from selfvox.studies.plan import Method, Plan
from selfvox.studies.run_once import is_done, run_once
from selfvox.studies.run_untrained import run_untrained
from selfvox.studies.score_run import compared_score, score_network
from selfvox.studies.stores import (
    check_leakage,
    encoder_card,
    fold_store,
    pretrain_store,
    trainable_subjects,
    unlabelled_store,
)
from selfvox.studies.supervised import supervised_settings

# in the folder of a run, what registration writes by the contents of both scans alone
_REGISTERED = ("pairs", "cases", "images", "labels", "foreground")


def run_cell(
    plan: Plan, facts: Mapping[str, MethodFacts], out: Path, cell: Cell, wait: bool = False
) -> None:
    """Make a cell, and the pre-training that it needs, unless they are done.

    Raises:
        BusyError: another process works on the cell or its pre-training, and `wait` is False.
        DataError: a test scan was seen in pre-training.
        SelfvoxError: what the verbs raise.
    """
    arm = cell.arm
    if not arm.method.is_network:
        run_untrained(plan, out, cell, wait)
        return
    method_facts = facts[arm.method.name]
    # a finished cell needs no pre-training, which may have been removed since
    if isinstance(arm.pretrain, dict) and not is_done(out / cell.folder):
        assert cell.pretrain_seed is not None
        pretrain_once(plan, out, arm.method, cell.pretrain_seed, cell.fold, wait)
    encoder = _encoder_of(plan, out, cell)
    finetuning = finetune_settings(plan, cell, method_facts)
    # what identifies the cell: a cell of other settings is refused
    identity: dict[str, Any] = {**finetuning, "pretrain": arm.pretrain}
    if arm.transfer != "all":
        identity["transfer"] = arm.transfer
    if isinstance(arm.pretrain, str):  # the run at this path may be replaced by another
        identity["encoder_sha256"] = encoder_card(Path(arm.pretrain)).sha256

    def work() -> dict[str, Any]:
        run = out / cell.folder
        store = open_store(fold_store(out / method_facts.store, cell.fold))
        leaks = 0
        if encoder != "none":
            card = encoder_card(Path(encoder))
            leaks = check_leakage(store, encoder, card.seen, plan.transductive)
        paths = {"labelled": store.path, "encoder": encoder}
        if arm.method.unlabelled_as is not None:
            paths["unlabelled"] = unlabelled_store(plan, arm.method, out, cell.fold)
            share_registrations(out, run)
        settings = {**finetuning, **_run_settings(run, paths)}
        finetune(resolve(Finetune, settings), is_alone=True)
        score_network(plan, run, store)
        # from the run, not from the plan: it says what was trained on
        split = splits.read_split(run / "split.json")
        trained_on = split.train
        chooses = finetuning.get("keep", Finetune.keep) == "best"
        return {
            "method": arm.name,
            "labels": len(trained_on),
            "validation_labels": len(split.validation) if chooses else 0,
            "fraction": len(trained_on) / len(trainable_subjects(store)),
            "seed": cell.seed,
            "pretrain_seed": cell.pretrain_seed,
            "fold": cell.fold,
            "transductive": leaks > 0,
            "slices": finetuning.get("slices"),
            "score": compared_score(run),
        }

    run_once(out, cell.folder, identity, work, wait)


def _encoder_of(plan: Plan, out: Path, cell: Cell) -> str:
    """The encoder that a cell starts from; `none` from scratch."""
    pretrain = cell.arm.pretrain
    if pretrain is None:
        return "none"
    if isinstance(pretrain, str):
        run = Path(pretrain)
    else:
        assert cell.pretrain_seed is not None
        run = out / pretrain_folder(plan, cell.arm.method, cell.pretrain_seed, cell.fold)
    # the folder of the encoder alone: a decoder that was pre-trained too is not read
    alone = run / "encoder"
    return str(alone if cell.arm.transfer == "encoder" and alone.is_dir() else run)


def pretrain_once(
    plan: Plan, out: Path, method: Method, seed: int, fold: int | None, wait: bool = False
) -> None:
    """Pre-train a method's encoder unless it is done."""
    folder = pretrain_folder(plan, method, seed, fold)
    settings = pretrain_settings(plan, method)

    def work() -> dict[str, Any]:
        run = out / folder
        paths: dict[str, Any]
        scans = pretrain_store(plan, method, out, fold)
        if method.is_supervised:
            paths = {"labelled": scans, "encoder": "none"}
            supervised = supervised_settings(settings)
            values = {**supervised, **_run_settings(run, paths), "seed": seed}
            finetune(resolve(Finetune, values), is_alone=True)
        else:
            paths = {"scans": scans}
            values = {**settings, **_run_settings(run, paths), "seed": seed}
            pretrain(resolve(Pretrain, values), is_alone=True)
        return {"method": method.name, "pretrain_seed": seed}

    run_once(out, folder, {**settings, "scans": method.pretrain}, work, wait)


def _run_settings(run: Path, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of a run, and whether it resumes.

    A run that resumes accepts only the settings it was started with, so equal paths are spelt
    as they were then.
    """
    resume = (run / "settings.yaml").exists()
    started = safe_yaml.read_yaml(run / "settings.yaml") if resume else {}
    unchanged = {
        name: started[name]
        for name, path in paths.items()
        if isinstance(started.get(name), str)
        and Path(started[name]).resolve() == Path(path).resolve()
    }
    return {**paths, **unchanged, "out": run, "resume": resume}


def share_registrations(out: Path, run: Path) -> None:
    """Let cells with the same labelled subjects share their registrations.

    A pair of scans is registered once for all cells, in `registrations/`; each run has its own
    table and picture of the pairs that it uses.
    """
    for name in _REGISTERED:
        shared = out / "registrations" / name
        shared.mkdir(parents=True, exist_ok=True)
        link = run / "copies" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            # relative, so that the study may be moved
            link.symlink_to(os.path.relpath(shared.resolve(), link.parent.resolve()))
