"""Labelled scans that a network was not trained on, to calibrate it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.preparation.leakage import content_hashes
from selfvox.data.preparation.prepare_case import image_hash, read_case
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.split import Split, read_split_if_present
from selfvox.data.preparation.store import Store, image_digest, is_store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.prediction.used_scans import TESTED, TRAINED, UsedScans, store_of_run, used_scans
from selfvox.runs.progress import echo, progress_bar


@dataclass(frozen=True)
class LabelledScan:
    """A scan with its true label; both are read when they are needed."""

    case: str
    subject: str
    # the prepared scan; and its label on the scan's own grid (*space), class numbers
    read: Callable[[], tuple[PreparedScan, np.ndarray]]
    # what the run used it for, by its voxels; None where its files and subject say all
    use_by_voxels: Callable[[], str | None] | None = None


def leave_out_seen_voxels(scans: Sequence[LabelledScan]) -> list[LabelledScan]:
    """Without the scans that the run has seen in files of other contents; prints how many.

    A file that was renamed and compressed again has the voxels that it had. Scans of files are
    read and prepared for this.
    """
    uses = []
    with progress_bar("comparing with the scans of the run", len(scans)) as bar:
        for scan in scans:
            uses.append(None if scan.use_by_voxels is None else scan.use_by_voxels())
            bar.advance()
    _report_used(uses)
    return [scan for scan, use in zip(scans, uses, strict=True) if use is None]


def unseen_scans(
    run: Path, labelled: Path | None, source: str, model: TrainedSegmenter
) -> list[LabelledScan]:
    """The labelled scans of subjects that the run was not trained on and is not tested on.

    Prints how many of the named scans are left out, and why.

    Args:
        run: a fine-tuning run.
        labelled: a data set or a store; None: the validation subjects in the run's own store.
        source: layout of the data set.
        model: its recipe prepares the scans.

    Raises:
        UsageError: the run has no store or no validation subjects, and no scans are named; or a
            store has resampled scans.
        DataError: the scans were prepared by another recipe.
    """
    split = read_split_if_present(run / "split.json")
    if labelled is None:
        return _validation_scans(run, split, model)
    used = used_scans(run, split)
    if is_store(labelled):
        store = open_store(labelled)
        stored = [
            (case, used.use(case.subject, content_hashes(case)))
            for case in store.cases
            if case.has_label
        ]
        _report_used([use for _, use in stored])
        return _stored_scans(run, store, [case for case, use in stored if use is None], model)
    files = [
        (case, used.use(case.subject, {image_hash(case)}))
        for case in find_dataset(labelled, source).cases
        if case.label is not None
    ]
    _report_used([use for _, use in files])
    return [_scan_of_file(case, model, used) for case, use in files if use is None]


def _report_used(uses: Sequence[str | None]) -> None:
    """Print how many labelled scans are left out, and why."""
    reasons = [f"{uses.count(use)} {use}" for use in (TRAINED, TESTED) if use in uses]
    if reasons:
        echo(f"left out of {len(uses)} labelled scans: {', '.join(reasons)}")


def _validation_scans(
    run: Path, split: Split | None, model: TrainedSegmenter
) -> list[LabelledScan]:
    """The scans of the run's validation subjects."""
    remedy = f"name labelled scans that it was not trained on: `selfvox calibrate {run} LABELLED/`"
    store = store_of_run(run)
    if split is None or store is None:
        missing = "split.json" if split is None else "store of its scans"
        raise UsageError(f"{run}: has no {missing}; {remedy}")
    subjects = set(split.validation)
    if not subjects:
        raise UsageError(f"{run}: has no validation subjects; {remedy}")
    cases = [case for case in store.cases if case.subject in subjects]
    return _stored_scans(run, store, cases, model)


def _stored_scans(
    run: Path, store: Store, cases: Sequence[StoredCase], model: TrainedSegmenter
) -> list[LabelledScan]:
    if not store.recipe.is_equivalent(model.recipe):
        raise DataError(
            f"{store.path}: was prepared by another recipe than the scans of the run; name the "
            "scans themselves"
        )
    labelled = [case for case in cases if case.has_label]
    # their labels would be resampled twice, like the predictions, which raises the Dice
    if any(case.geometry.is_resampled for case in labelled):
        raise UsageError(
            f"{store.path}: its scans were resampled, so it has no labels on their own grids; name "
            f"the scans and label files: `selfvox calibrate {run} LABELLED/`"
        )
    return [_scan_of_store(store, case) for case in labelled]


def _scan_of_store(store: Store, case: StoredCase) -> LabelledScan:
    def read() -> tuple[PreparedScan, np.ndarray]:
        start = (0,) * len(case.shape)
        prepared = PreparedScan(
            data=store.crop(case, start, case.shape),
            spacing_mm=case.spacing_mm,
            affine=np.array(case.affine),
            geometry=case.geometry,
        )
        label = store.label_crop(case, start, case.shape)
        return prepared, store.recipe.undo(label, case.geometry)

    return LabelledScan(case.id, case.subject, read)


def _scan_of_file(case: Case, model: TrainedSegmenter, used: UsedScans) -> LabelledScan:
    def read() -> tuple[PreparedScan, np.ndarray]:
        assert case.label is not None
        image = read_case(case, len(model.recipe.channel_names))
        label = images.read_label(case.label, image, model.classes)
        return model.recipe.apply(image), label

    def use_by_voxels() -> str | None:
        image = read_case(case, len(model.recipe.channel_names))
        return used.use(case.subject, {image_digest(model.recipe.apply(image))})

    return LabelledScan(case.id, case.subject, read, use_by_voxels)
