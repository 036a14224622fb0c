"""The work of a study: pre-trainings and cells, made by the verbs' own functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfvox.commands.evaluate import evaluate
from selfvox.commands.finetune import finetune
from selfvox.commands.predict import predict
from selfvox.commands.pretrain import pretrain
from selfvox.data.naming import natural_key
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import Store, open_store
from selfvox.prediction import class_table, output_folder
from selfvox.runs import atomic_files
from selfvox.runs.card import ClassifierCard
from selfvox.runs.weights import read_network_card
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Evaluate, Finetune, Predict, Pretrain
from selfvox.studies import class_scores
from selfvox.studies.design import (
    Cell,
    finetune_settings,
    pretrain_folder,
    pretrain_settings,
)
from selfvox.studies.facts import MethodFacts
from selfvox.studies.plan import Method, Plan
from selfvox.studies.run_once import run_once
from selfvox.studies.stores import (
    check_leakage,
    encoder_card,
    fold_store,
    pretrain_store,
    trainable_subjects,
)


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
    method_facts = facts[arm.method.name]
    encoder = _encoder_of(plan, out, cell, wait)
    finetuning = finetune_settings(plan, cell, method_facts)
    # what identifies the cell: a cell of other settings is refused
    identity: dict[str, Any] = {**finetuning, "pretrain": arm.pretrain}
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
        finetune(resolve(Finetune, {**finetuning, **_run_settings(run, paths)}))
        score(plan, run, store)
        # from the run, not from the plan: it says what was trained on
        split = splits.read_split(run / "split.json")
        trained_on = split.train
        chooses = finetuning.get("keep", Finetune.keep) == "best"
        return {
            "method": arm.name,
            "twin": arm.twin,
            "labels": len(trained_on),
            "validation_labels": len(split.validation) if chooses else 0,
            "fraction": len(trained_on) / len(trainable_subjects(store)),
            "seed": cell.seed,
            "pretrain_seed": cell.pretrain_seed,
            "fold": cell.fold,
            "transductive": leaks > 0,
            "slices": finetuning.get("slices"),
            "score": _compared_score(run),
        }

    run_once(out, cell.folder, identity, work, wait)


def _encoder_of(plan: Plan, out: Path, cell: Cell, wait: bool) -> str:
    """The encoder that a cell starts from, pre-trained first if need be; `none` from scratch."""
    pretrain = cell.arm.pretrain
    if pretrain is None:
        return "none"
    if isinstance(pretrain, str):
        return pretrain
    assert cell.pretrain_seed is not None
    pretrain_once(plan, out, cell.arm.method, cell.pretrain_seed, cell.fold, wait)
    return str(out / pretrain_folder(plan, cell.arm.method, cell.pretrain_seed, cell.fold))


def pretrain_once(
    plan: Plan, out: Path, method: Method, seed: int, fold: int | None, wait: bool = False
) -> None:
    """Pre-train a method's encoder unless it is done."""
    folder = pretrain_folder(plan, method, seed, fold)
    settings = pretrain_settings(plan, method)

    def work() -> dict[str, Any]:
        run = out / folder
        paths = {"scans": pretrain_store(plan, method, out, fold)}
        pretrain(resolve(Pretrain, {**settings, **_run_settings(run, paths), "seed": seed}))
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


def score(plan: Plan, run: Path, store: Store) -> None:
    """Predict the test subjects and score them, into the run's folder.

    Args:
        plan: says where the scans are, and on which device to predict.
        run: fine-tuned.
        store: what the run was trained on.
    """
    predictions = run / "predictions"
    # on the device of the training; the other settings of `finetune` are none of `predict`
    hardware: dict[str, Any] = {
        name: plan.finetune[name] for name in ("device", "precision") if name in plan.finetune
    }
    settings: dict[str, Any] = {
        "run": run,
        "scans": plan.data,
        "out": predictions,
        "subset": "test",
        "source": plan.source,
    }
    predict(resolve(Predict, {**settings, **hardware}))
    evaluate(
        Evaluate(
            predictions=predictions,
            truth=plan.data,
            out=run / "scores.csv",
            source=plan.source,
        )
    )
    table = predictions / output_folder.CLASS_TABLE
    if table.exists():
        _write_answers(table, store, run / "answers.csv")


def _write_answers(table: Path, store: Store, out: Path) -> None:
    """Write the true and the predicted class number of each case with a grade."""
    classified = class_table.read_class_table(table)
    true = {
        case.id: classified.classes.index(str(case.grade))
        for case in store.cases
        if case.id in classified.predicted and case.grade is not None
    }
    rows = [
        [case, true[case], classified.predicted[case]] for case in sorted(true, key=natural_key)
    ]
    atomic_files.write_csv(out, ["case", "true", "predicted"], rows)


def _compared_score(run: Path) -> str:
    """The score of a run that is compared with its twin's."""
    if not (run / "answers.csv").exists():
        return "dice"
    card = read_network_card(run)
    is_ordinal = isinstance(card, ClassifierCard) and card.ordinal
    return class_scores.KAPPA if is_ordinal else class_scores.ACCURACY
