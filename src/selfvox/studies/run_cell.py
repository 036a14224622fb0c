"""The work of a study: pre-trainings and cells, made by the verbs' own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfvox.commands.evaluate import evaluate
from selfvox.commands.finetune import finetune
from selfvox.commands.predict import predict
from selfvox.commands.pretrain import pretrain
from selfvox.data.formats import strict_json
from selfvox.data.naming import natural_key
from selfvox.data.preparation import split as splits
from selfvox.data.preparation.store import Store, open_store
from selfvox.prediction import class_table, output_folder
from selfvox.runs import atomic_files
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Evaluate, Finetune, Predict, Pretrain
from selfvox.studies import class_scores
from selfvox.studies import design as layout
from selfvox.studies import plan as plans
from selfvox.studies.design import Cell, MethodFacts
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import run_once
from selfvox.studies.stores import card_of, fold_store, guard, scans_of, trainable


def run_cell(
    plan: Plan, facts: dict[str, MethodFacts], out: Path, cell: Cell, wait: bool = False
) -> None:
    """Make a cell, and the pre-training that it needs, unless they are there.

    Raises:
        BusyError: another process is at the cell or its pre-training, and `wait` is not given.
        DataError: a test scan was seen in pre-training.
        SelfvoxError: what the verbs raise.
    """
    found = cell.arm.pretrain
    encoder = "none"
    if isinstance(found, str):
        encoder = found
    elif found is not None:
        assert cell.pretrain_seed is not None
        encoder = str(
            out / layout.pretraining(plan, cell.arm.method, cell.pretrain_seed, cell.fold)
        )
        pretrain_once(plan, out, cell.arm.method, cell.pretrain_seed, cell.fold, wait)
    fact = facts[cell.arm.method]
    given = layout.finetune_settings(plan, cell, fact)
    settings: dict[str, Any] = {**given, "pretrain": found}
    if isinstance(found, str):  # another run may lie there tomorrow
        settings["encoder_sha256"] = card_of(Path(found))["sha256"]

    def work() -> dict[str, Any]:
        run, store = out / cell.folder, open_store(fold_store(out / fact.store, cell.fold))
        known = (
            guard(store, encoder, card_of(Path(encoder))["seen"], plan.transductive)
            if encoder != "none"
            else 0
        )
        paths = {"labelled": store.path, "encoder": encoder}
        finetune(resolve(Finetune, {**given, **_begun(run, paths)}))
        score(plan, run, store)
        split = splits.read_split(run / "split.json")
        return {
            "method": cell.arm.name,
            "twin": cell.arm.twin,
            "labels": len(split.train),
            "fraction": len(split.train) / len(trainable(store)),
            "seed": cell.seed,
            "pretrain_seed": cell.pretrain_seed,
            "fold": cell.fold,
            "transductive": known > 0,
            "slices": given.get("slices"),
            "score": _compared(run),
        }

    run_once(out, cell.folder, settings, work, wait)


def _begun(run: Path, paths: dict[str, Any]) -> dict[str, Any]:
    """Paths for a run, which goes on where it was begun: then as they were written, for it takes no others."""
    resume = (run / "settings.yaml").exists()
    before = safe_yaml.read_yaml(run / "settings.yaml") if resume else {}
    same = {
        name: before[name]
        for name, value in paths.items()
        if isinstance(before.get(name), str)
        and Path(before[name]).resolve() == Path(value).resolve()
    }
    return {**paths, **same, "out": run, "resume": resume}


def score(plan: Plan, run: Path, store: Store) -> None:
    """Predict the test subjects and score them, into the run's folder; `store` is what the run was trained on."""
    shared: dict[str, Any] = {
        name: plan.finetune[name] for name in ("device", "precision") if name in plan.finetune
    }
    how = {
        "run": run,
        "scans": plan.data,
        "out": run / "predictions",
        "subset": "test",
        "source": plan.source,
    }
    predict(resolve(Predict, {**how, **shared}))
    evaluate(
        Evaluate(
            predictions=run / "predictions",
            truth=plan.data,
            out=run / "scores.csv",
            source=plan.source,
        )
    )
    table = run / "predictions" / output_folder.CLASS_TABLE
    if table.exists():
        answers = class_table.read_class_table(table)
        known = [
            case for case in store.cases if case.id in answers.predicted and case.grade is not None
        ]
        graded = {case.id: answers.classes.index(str(case.grade)) for case in known}
        rows = [
            [case, graded[case], answers.predicted[case]]
            for case in sorted(graded, key=natural_key)
        ]
        atomic_files.write_csv(run / "answers.csv", ["case", "true", "predicted"], rows)


def _compared(run: Path) -> str:
    """What of a run's scores is compared with its twin's."""
    if not (run / "answers.csv").exists():
        return "dice"
    ordered = strict_json.read_json(run / "network" / "network.json")["ordinal"]
    return class_scores.KAPPA if ordered else class_scores.ACCURACY


def pretrain_once(
    plan: Plan, out: Path, method: str, seed: int, fold: int | None, wait: bool = False
) -> None:
    """Pre-train a method's encoder unless it is there."""
    folder = layout.pretraining(plan, method, seed, fold)
    given = layout.pretrain_settings(plan, method)

    def work() -> dict[str, Any]:
        run = out / folder
        paths = {"scans": scans_of(plan, method, out, fold)}
        pretrain(resolve(Pretrain, {**given, **_begun(run, paths), "seed": seed}))
        return {"method": method, "pretrain_seed": seed}

    run_once(
        out, folder, {**given, "scans": plans.resolve_method(plan, method).pretrain}, work, wait
    )
