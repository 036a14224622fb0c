"""Labelled scans that networks were not trained on, to calibrate them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.preparation.leakage import content_hashes
from selfvox.data.preparation.likeness import coarse_picture
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.prepare_case import image_hash, read_case
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.split import read_split_if_present
from selfvox.data.preparation.store import Store, image_digest, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.prediction.scan_check import compare_scan
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedModel,
    TrainedRegressor,
    TrainedSegmenter,
)
from selfvox.prediction.used_scans import TESTED, TRAINED, UsedScans, store_of_run, used_scans
from selfvox.runs.progress import echo, progress_bar

Model = TrainedModel
# of a scan: its label on its own grid (*space), class numbers; or its grade or target, where
# networks are of whole scans
Truth = np.ndarray | int | float


@dataclass(frozen=True)
class LabelledScan:
    """A scan with its truth; both are read when they are needed."""

    case: str
    subject: str
    read: Callable[[], tuple[PreparedScan, Truth]]
    # what the run used it for, by its voxels; None where its files and subject say all
    use_by_voxels: Callable[[], str | None] | None = None


def unseen_scans(
    runs: Sequence[Path], labelled: Path | None, source: str, models: Sequence[Model]
) -> list[list[LabelledScan]]:
    """For each network, labelled scans of subjects that it was not trained on.

    Each scan is given to one network, of those that have not seen it the one with the fewest scans.
    Prints how many of the named scans are left out since no network is left for them, and why.

    Args:
        runs: fine-tuning runs.
        labelled: a data set or a store; None: the validation subjects in the store of each run.
        source: layout of the data set.
        models: of the runs; their recipe prepares the scans.

    Raises:
        UsageError: a run has no store or no validation subjects, and no scans are named; or a store
            has resampled scans.
        DataError: the scans were prepared by another recipe.
    """
    if labelled is None:
        candidates = [
            _validation_scans(run, model) for run, model in zip(runs, models, strict=True)
        ]
    else:
        used = [used_scans(run, read_split_if_present(run / "split.json")) for run in runs]
        find = _scans_of_store if is_store(labelled) else _scans_of_files
        candidates = find(runs, labelled, source, models, used)
    return _one_network_each(candidates)


def leave_out_seen_voxels(
    scans: Sequence[Sequence[LabelledScan]],
) -> list[list[LabelledScan]]:
    """Without the scans that their network has seen in files of other contents; prints how many.

    A file that was renamed and compressed again has the voxels that it had, and a resampled copy
    looks the same. Scans of files are read and prepared for this.

    Args:
        scans: of each network.
    """
    uses: list[list[str | None]] = []
    kept: list[list[LabelledScan]] = []
    with progress_bar("comparing with the scans of the run", sum(map(len, scans))) as bar:
        for of_network in scans:
            kept.append([])
            for scan in of_network:
                use = None if scan.use_by_voxels is None else scan.use_by_voxels()
                uses.append([use])
                if use is None:
                    kept[-1].append(scan)
                bar.advance()
    _report_used(uses)
    return kept


def _one_network_each(candidates: Sequence[Sequence[LabelledScan]]) -> list[list[LabelledScan]]:
    """The scans of each network, each scan of one network alone."""
    choices: dict[str, dict[int, LabelledScan]] = {}
    for number, scans in enumerate(candidates):
        for scan in scans:
            choices.setdefault(scan.case, {})[number] = scan
    given: list[list[LabelledScan]] = [[] for _ in candidates]
    # first those with the least choice
    for networks in sorted(choices.values(), key=len):
        number = min(networks, key=lambda number: len(given[number]))
        given[number].append(networks[number])
    return given


def _report_used(uses: Sequence[Sequence[str | None]]) -> None:
    """Print how many labelled scans are left out, and why.

    Args:
        uses: of each scan, by each network.
    """
    left_out = [of_scan for of_scan in uses if None not in of_scan]
    reasons = [TRAINED if TRAINED in of_scan else TESTED for of_scan in left_out]
    texts = [f"{reasons.count(use)} {use}" for use in (TRAINED, TESTED) if use in reasons]
    if texts:
        echo(f"left out of {len(uses)} labelled scans: {', '.join(texts)}")


def _validation_scans(run: Path, model: Model) -> list[LabelledScan]:
    """The scans of a run's validation subjects, without copies of scans that trained it."""
    split = read_split_if_present(run / "split.json")
    remedy = f"name labelled scans that it was not trained on: `selfvox calibrate {run} LABELLED/`"
    store = store_of_run(run)
    if split is None or store is None:
        missing = "split.json" if split is None else "store of its scans"
        raise UsageError(f"{run}: has no {missing}; {remedy}")
    subjects = set(split.validation)
    if not subjects:
        raise UsageError(f"{run}: has no validation subjects; {remedy}")
    cases = [case for case in store.cases if case.subject in subjects and _has_truth(case, model)]
    used = used_scans(run, split)
    uses = [used.use(case.subject, content_hashes(case), case.coarse_picture) for case in cases]
    _report_used([[use] for use in uses])
    unseen = [case for case, use in zip(cases, uses, strict=True) if use is None]
    return _stored_scans(run, store, unseen, model)


def _scans_of_store(
    runs: Sequence[Path],
    labelled: Path,
    source: str,
    models: Sequence[Model],
    used: Sequence[UsedScans],
) -> list[list[LabelledScan]]:
    """For each network, the scans of a store that it has not seen."""
    store = open_store(labelled)
    cases = [case for case in store.cases if _has_truth(case, models[0])]
    uses = [
        [of_run.use(case.subject, content_hashes(case), case.coarse_picture) for of_run in used]
        for case in cases
    ]
    _report_used(uses)
    scans = []
    for number, (run, model) in enumerate(zip(runs, models, strict=True)):
        unseen = [
            case for case, of_case in zip(cases, uses, strict=True) if of_case[number] is None
        ]
        scans.append(_stored_scans(run, store, unseen, model))
    return scans


def _scans_of_files(
    runs: Sequence[Path],
    labelled: Path,
    source: str,
    models: Sequence[Model],
    used: Sequence[UsedScans],
) -> list[list[LabelledScan]]:
    """For each network, the scans of a data set that it has not seen, by their files."""
    cases = [case for case in find_dataset(labelled, source).cases if _has_truth(case, models[0])]
    uses = [
        [of_run.use(case.subject, contents) for of_run in used]
        for case, contents in ((case, {image_hash(case)}) for case in cases)
    ]
    _report_used(uses)
    return [
        [
            _scan_of_file(case, model, of_run)
            for case, of_case in zip(cases, uses, strict=True)
            if of_case[number] is None
        ]
        for number, (model, of_run) in enumerate(zip(models, used, strict=True))
    ]


def _has_truth(case: Case | StoredCase, model: Model) -> bool:
    """Whether a case has what the model predicts: a label, a grade or a target."""
    if not isinstance(model, TrainedSegmenter):
        return _truth_of_scan(case, model) is not None
    return case.has_label if isinstance(case, StoredCase) else case.label is not None


def _stored_scans(
    run: Path, store: Store, cases: Sequence[StoredCase], model: Model
) -> list[LabelledScan]:
    if not store.recipe.is_equivalent(model.recipe):
        raise DataError(
            f"{store.path}: was prepared by another recipe than the scans of the run; name the "
            "scans themselves"
        )
    is_segmenter = isinstance(model, TrainedSegmenter)
    # their labels would be resampled twice, like the predictions, which raises the Dice
    if is_segmenter and any(case.geometry.is_resampled for case in cases):
        raise UsageError(
            f"{store.path}: its scans were resampled, so it has no labels on their own grids; name "
            f"the scans and label files: `selfvox calibrate {run} LABELLED/`"
        )
    return [_scan_of_store(store, case, model) for case in cases]


def _truth_of_scan(
    case: Case | StoredCase, model: TrainedClassifier | TrainedRegressor
) -> int | float | None:
    """The grade or the target of a case, by the kind of the network."""
    return case.grade if isinstance(model, TrainedClassifier) else case.target


def _scan_of_store(store: Store, case: StoredCase, model: Model) -> LabelledScan:
    def read() -> tuple[PreparedScan, Truth]:
        start = (0,) * len(case.shape)
        prepared = PreparedScan(
            data=store.crop(case, start, case.shape),
            spacing_mm=case.spacing_mm,
            affine=np.array(case.affine),
            geometry=case.geometry,
        )
        if not isinstance(model, TrainedSegmenter):
            truth = _truth_of_scan(case, model)
            assert truth is not None
            return prepared, truth
        label = store.label_crop(case, start, case.shape)
        return prepared, store.recipe.undo(label, case.geometry)

    return LabelledScan(case.id, case.subject, read)


def _scan_of_file(case: Case, model: Model, used: UsedScans) -> LabelledScan:
    def read() -> tuple[PreparedScan, Truth]:
        image = read_case(case, len(model.recipe.channel_names))
        prepared = model.recipe.apply(image)
        # `predict` would refuse such scans, so that nothing is to be calibrated for them
        comparison = compare_scan(
            [model.scans], image, prepared, force=True, modality=case.modality
        )
        for note in comparison.notes:
            echo(f"{image.name}: {note}")
        if not isinstance(model, TrainedSegmenter):
            truth = _truth_of_scan(case, model)
            assert truth is not None
            return prepared, truth
        assert case.label is not None
        return prepared, images.read_label(case.label, image, model.classes)

    def use_by_voxels() -> str | None:
        image = read_case(case, len(model.recipe.channel_names))
        prepared = model.recipe.apply(image)
        return used.use(case.subject, {image_digest(prepared)}, coarse_picture(prepared.data))

    return LabelledScan(case.id, case.subject, read, use_by_voxels)
