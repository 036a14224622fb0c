"""The verb `atlas`: labels carried onto new scans by registration, without a network."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.store import Store
from selfvox.errors import DataError
from selfvox.prediction.carry_labels import AtlasPredictions, carry_to_scans
from selfvox.prediction.scan_loop import all_cases
from selfvox.registration.register import check_installed
from selfvox.runs.progress import echo
from selfvox.settings.verbs import Atlas


def atlas(settings: Atlas) -> list[Path]:
    """Carry the labels of a few scans onto others by registration, by majority vote.

    Predictions that `out` contains already, of the same labels and settings, are kept.

    Returns:
        The predicted labels' files, in the order of the cases.

    Raises:
        UsageError: greedy is not installed, or `out` contains other predictions.
        BusyError: another process is predicting into `out`.
        DataError: there are no labels, or at least one scan could not be predicted; the others
            were.
        ResourceError: the disk is full.
        Stopped: a signal came; finished predictions are kept.
    """
    check_installed()
    labelled = _atlases(settings)
    predictions = AtlasPredictions(settings.out, labelled, settings.atlases)
    cases = all_cases(
        settings.scans,
        settings.source,
        settings.out,
        labelled.recipe,
        "the labelled scans have",
    )
    predicted = carry_to_scans(cases, predictions, settings.workers)
    echo(f"predictions: {settings.out} ({len(predicted)} scans)")
    scans = shlex.quote(str(settings.scans))
    echo(f"look: selfvox report {shlex.quote(str(settings.out))} --scans {scans} --out report/")
    echo(f"next: selfvox evaluate {settings.out} TRUTH/ --out scores.csv")
    return [predictions.folder.files.label_file(case) for case in predicted]


def _atlases(settings: Atlas) -> Store:
    """The labelled scans, without those of the split's validation and test subjects.

    Raises:
        DataError: there are none.
    """
    store = open_or_build_store(
        settings.labelled, settings.out / "store", settings, need_labels=True
    )
    split = store.split()
    held_out = {*split.validation, *split.test} if split else set()
    cases = tuple(case for case in store.cases if case.has_label and case.subject not in held_out)
    if not cases:
        raise DataError(
            f"{settings.labelled}: has no label image to carry; name scans with label images"
        )
    echo(f"{len(cases)} labelled scans; at most {settings.atlases} of them vote for each scan")
    # absolute: workers may have another working folder
    return dataclasses.replace(store, path=store.path.absolute(), cases=cases)
