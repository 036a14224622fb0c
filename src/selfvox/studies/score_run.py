"""Predictions of the test subjects, and their scores: of a network, or made without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.data.naming import natural_key
from selfvox.data.preparation.store import Store
from selfvox.prediction import class_table, output_folder
from selfvox.runs import atomic_files
from selfvox.runs.card import ClassifierCard
from selfvox.runs.weights import read_network_card
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve
from selfvox.settings.verbs import Evaluate, Finetune, Predict
from selfvox.studies import class_scores
from selfvox.studies.plan import Plan

PREDICTIONS = "predictions"  # in the folder of a run


def score_network(plan: Plan, run: Path, store: Store) -> None:
    """Predict the test subjects and score them, into the run's folder.

    Args:
        plan: says where the scans are.
        run: fine-tuned.
        store: what the run was trained on.
    """
    settings: dict[str, Any] = {
        "run": run,
        "scans": plan.data,
        "out": run / PREDICTIONS,
        "subset": "test",
        "source": plan.source,
    }
    predict(resolve(Predict, {**settings, **hardware(run)}))
    score_predictions(plan, run)
    table = run / PREDICTIONS / output_folder.CLASS_TABLE
    if table.exists():
        _write_answers(table, store, run / "answers.csv")


def hardware(run: Path) -> dict[str, Any]:
    """The settings of `predict` that are those of the training, where they are no defaults."""
    trained = safe_yaml.read_yaml(run / "settings.yaml")
    defaults = {"device": Finetune.device, "precision": Finetune.precision}
    return {
        name: trained[name]
        for name, default in defaults.items()
        if trained.get(name, default) != default
    }


def score_predictions(plan: Plan, run: Path, regions: str | None = None) -> None:
    """Score the predictions in the folder of a run.

    Args:
        plan: says where the truth is.
        run: has them.
        regions: to score; None: those that the predictions or the scans declare.
    """
    evaluate(
        Evaluate(
            predictions=run / PREDICTIONS,
            truth=plan.data,
            out=run / "scores.csv",
            source=plan.source,
            regions=regions,
        )
    )


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


def compared_score(run: Path) -> str:
    """The score of a run that is compared with its twin's."""
    if not (run / "answers.csv").exists():
        return "dice"
    card = read_network_card(run)
    is_ordinal = isinstance(card, ClassifierCard) and card.ordinal
    return class_scores.KAPPA if is_ordinal else class_scores.ACCURACY
