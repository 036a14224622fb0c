"""The verb `predict`: segmentations on each scan's own grid, or a table of classes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfvox.data.formats.dicom_object import check_installed
from selfvox.data.naming import printable
from selfvox.data.sources import Case
from selfvox.errors import UsageError
from selfvox.prediction.bids_names import check_names, write_bids
from selfvox.prediction.jobs import load_job
from selfvox.prediction.output_folder import SETTINGS
from selfvox.prediction.prediction_job import PredictionJob
from selfvox.prediction.scan_loop import chosen_cases, process_scans
from selfvox.prediction.segmentation_job import SegmentationJob
from selfvox.runs.atomic_files import write_text
from selfvox.runs.fold_folder import name_networks
from selfvox.runs.progress import echo
from selfvox.runs.stop_signals import stop_on_signal
from selfvox.settings.options import to_yaml
from selfvox.settings.verbs import Predict
from selfvox.uncertainty.ensemble import check_several, describe_passes


def predict(settings: Predict) -> list[Path]:
    """Predict segmentations, each on the grid of its scan; or a table of classes.

    Predictions that `out` contains already, of the same run and settings, are kept.

    Returns:
        The predicted labels' files, in the order of the cases; of a run that classifies, the table.

    Raises:
        UsageError: `out` contains predictions of another run; or the runs of an ensemble cannot
            vote together.
        BusyError: another process is predicting into `out`.
        DataError: there is no scan, or at least one could not be predicted; the others were.
        WeightsError: the run has no intact network.
        ResourceError: disk or memory is full.
        Stopped: a signal came; finished predictions are kept.
    """
    runs = name_networks([settings.run, *settings.ensemble])
    check_several(settings, len(runs))
    settings = replace(settings, run=runs[0], ensemble=tuple(runs[1:]))
    job = load_job(settings)
    cases = chosen_cases(settings, job.recipe)
    if settings.dicom:
        _check_dicom(job, cases)
    if settings.bids:
        _check_bids(job, settings, cases)
    with job.folder.lock(), stop_on_signal(settings.out):
        describe_passes(job.passes, job.trained_dropout)
        cases, todo = job.folder.open(cases, job.card, job.classes, job.regions, settings.replace)
        write_text(settings.out / SETTINGS, to_yaml(settings))
        with job.folder.rejecting(len(cases)) as rejected:
            process_scans(todo, len(cases), job.recipe, job.predict_case, job.workplace, rejected)
            job.write_tables(cases)
            if settings.bids:
                _write_bids(job, cases)
            if settings.subset != "train":
                _warn_of_trained_scans(job, cases)
        echo(f"predictions: {job.result} ({len(cases)} scans)")
        echo(f"next: selfvox evaluate {settings.out} {job.truth} --out scores.csv")
        # a report does not show numbers of whole scans
        if job.classes:
            echo(f"look: selfvox report {shlex.quote(str(settings.out))} --out report/")
    return job.outputs(cases)


def _check_dicom(job: PredictionJob, cases: Sequence[Case]) -> None:
    """Refuse DICOM segmentations of what is no segmentation, or of no DICOM series."""
    check_installed()
    if not isinstance(job, SegmentationJob):
        raise UsageError("dicom: the run classifies whole scans; leave --dicom out")
    others = [case for case in cases if not case.stacked]
    if len(others) == len(cases):
        raise UsageError("dicom: none of the scans is a DICOM series; leave --dicom out")
    if others:
        echo(f"dicom: {len(others)} scans, such as {others[0].id}, are no DICOM series")


def _check_bids(job: PredictionJob, settings: Predict, cases: Sequence[Case]) -> None:
    """Refuse BIDS derivatives of what is no segmentation, no NIfTI file, or has no BIDS name."""
    if not isinstance(job, SegmentationJob):
        raise UsageError("bids: the run is of whole scans and writes no labels; leave --bids out")
    if settings.format != "nii.gz":
        raise UsageError(f"bids: its labels are NIfTI files; leave --format {settings.format} out")
    pictures = [case for case, path in _labels(job, cases) if path.suffix == ".png"]
    if pictures:
        raise UsageError(
            f"bids: {printable(pictures[0].images[0].name)} is a picture, which BIDS has no label "
            "files for; leave --bids out"
        )
    check_names(cases)


def _write_bids(job: PredictionJob, cases: Sequence[Case]) -> None:
    records = job.folder.records()
    labels = {case.id: path for case, path in _labels(job, cases) if case.id in records}
    folder = write_bids(
        job.folder.path,
        labels,
        cases,
        job.classes,
        records,
        job.card["network_sha256"],
    )
    echo(f"BIDS derivatives: {folder} ({len(labels)} labels)")


def _labels(job: PredictionJob, cases: Sequence[Case]) -> list[tuple[Case, Path]]:
    """Each case with the file of its label."""
    return list(zip(cases, job.outputs(cases), strict=True))


def _warn_of_trained_scans(job: PredictionJob, cases: Sequence[Case]) -> None:
    trained = job.folder.trained_on(cases)
    if trained:
        echo(
            f"{len(trained)} of {len(cases)} scans, such as {trained[0]}, or scans of their "
            "subjects trained the run: their predictions are better than those of new scans"
        )
