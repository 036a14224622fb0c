"""Cells without a network: labels carried by registration, and predictions made elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfvox.data.preparation.store import Store, open_store
from selfvox.data.sources import find_dataset
from selfvox.prediction.carry_labels import AtlasPredictions, carry_to_scans
from selfvox.settings.verbs import Atlas, PreparationSettings
from selfvox.studies.design import Cell
from selfvox.studies.made_elsewhere import digest, files_of_test_scans, folder_of, link_files
from selfvox.studies.plan import Plan
from selfvox.studies.run_once import run_once
from selfvox.studies.score_run import PREDICTIONS, score_predictions
from selfvox.studies.stores import STORE, draw_subjects, fold_store, split_of, trainable_subjects


def run_untrained(plan: Plan, out: Path, cell: Cell, wait: bool = False) -> None:
    """Make a cell of a method without a network, unless it is done.

    Raises:
        BusyError: another process works on it, and `wait` is False.
        DataError: predictions are missing, or a scan cannot be registered.
    """
    store = open_store(fold_store(out / STORE, cell.fold))
    method = cell.arm.method
    subjects = draw_subjects(store, cell.seed, cell.labels, cell.fraction)
    test = cases_to_test(store)
    identity: dict[str, Any] = {
        "subjects": subjects,
        "test": test,
        "atlases": method.atlases,
    }
    run = out / cell.folder

    if method.predictions is None:

        def predict() -> None:
            carry(plan, store, subjects, test, run, method.atlases or Atlas.atlases)

    else:
        files = files_of_test_scans(folder_of(method.predictions, cell), test)
        identity["sha256"] = digest(files)

        def predict() -> None:
            link_files(files, run / PREDICTIONS)

    def work() -> dict[str, Any]:
        predict()
        # those that the networks of the plan are scored in
        score_predictions(plan, run, plan.finetune.get("regions"))
        return {
            "method": cell.arm.name,
            "labels": len(subjects),
            "validation_labels": 0,
            "fraction": len(subjects) / len(trainable_subjects(store)),
            "seed": cell.seed,
            "pretrain_seed": None,
            "fold": cell.fold,
            "transductive": False,
            "slices": None,
            "score": "dice",
        }

    run_once(out, cell.folder, identity, work, wait)


def cases_to_test(store: Store) -> list[str]:
    """The ids of the test scans with a label image."""
    test = set(split_of(store).test)
    return [case.id for case in store.cases if case.subject in test and case.has_label]


def carry(
    plan: Plan, store: Store, subjects: Sequence[str], test: Sequence[str], run: Path, atlases: int
) -> None:
    """Carry the labels of some subjects onto test scans, into a run's folder."""
    labelled = dataclasses.replace(
        store,
        path=store.path.absolute(),
        cases=tuple(case for case in store.cases if case.subject in subjects and case.has_label),
    )
    cases = [case for case in find_dataset(plan.data, plan.source).cases if case.id in set(test)]
    workers = int(plan.prepare.get("workers", PreparationSettings.workers))
    carry_to_scans(cases, AtlasPredictions(run / PREDICTIONS, labelled, atlases), workers)
