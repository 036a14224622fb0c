"""Labelled scans that a network was not trained on, to calibrate it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.preparation.leakage import SeenScans, content_hashes
from selfvox.data.preparation.prepare_case import image_hash, read_case
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.split import Split, read_split_if_present
from selfvox.data.preparation.store import Store, is_store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case, find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.prediction.trained_model import TrainedSegmenter
from selfvox.runs import strict_json
from selfvox.runs.progress import echo
from selfvox.runs.weights import read_network_card
from selfvox.settings import safe_yaml

# uses of scans that may not calibrate
_TRAINED = "that trained the run"
_TESTED = "of its test subjects"


@dataclass(frozen=True)
class LabelledScan:
    """A scan with its true label; both are read when they are needed."""

    case: str
    subject: str
    # the prepared scan; and its label on the scan's own grid (*space), class numbers
    read: Callable[[], tuple[PreparedScan, np.ndarray]]


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
    used = _used_scans(run, split)
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
    return [_scan_of_file(case, model) for case, use in files if use is None]


@dataclass(frozen=True)
class _UsedScans:
    """Subjects of a run, and hashes of the contents of their scans, by their use."""

    subjects: Mapping[str, set[str]]
    contents: Mapping[str, set[str]]

    def use(self, subject: str, contents: set[str]) -> str | None:
        """The use of a scan; None if it may calibrate."""
        for name in self.subjects:
            if subject in self.subjects[name] or contents & self.contents[name]:
                return name
        return None


def _used_scans(run: Path, split: Split | None) -> _UsedScans:
    """What trained a run, copies and pseudo-labels included, and what it is to be tested on.

    Validation subjects may calibrate. Without the store of the run, their scans look like those
    that trained, by their contents, and are left out.
    """
    seen = _training_scans(run)
    trained = set(seen["subjects"])
    contents = set(seen["image_hashes"])
    if split is None:
        return _UsedScans({_TRAINED: trained}, {_TRAINED: contents})
    trained = trained.union(split.train) - set(split.validation)
    store = _store_of_run(run)
    cases = () if store is None else store.cases
    hashes: dict[bool, set[str]] = {True: set(), False: set()}
    test_contents: set[str] = set()
    for case in cases:
        hashes[case.subject in split.validation] |= content_hashes(case)
        if case.subject in split.test:
            test_contents |= content_hashes(case)
    # a scan that occurs under another subject too was not only validated on
    contents -= hashes[True] - hashes[False]
    return _UsedScans(
        {_TRAINED: trained, _TESTED: set(split.test)},
        {_TRAINED: contents, _TESTED: test_contents},
    )


def _training_scans(run: Path) -> SeenScans:
    """The scans of a run's fine-tuning; if it has no record, also those of its pre-training."""
    file = run / "run.json"
    record = strict_json.read_json(file) if file.is_file() else {}
    data = record.get("data") if isinstance(record, dict) else None
    return read_network_card(run).seen if data is None else data


def _report_used(uses: Sequence[str | None]) -> None:
    """Print how many labelled scans are left out, and why."""
    reasons = [f"{uses.count(use)} {use}" for use in (_TRAINED, _TESTED) if use in uses]
    if reasons:
        echo(f"left out of {len(uses)} labelled scans: {', '.join(reasons)}")


def _validation_scans(
    run: Path, split: Split | None, model: TrainedSegmenter
) -> list[LabelledScan]:
    """The scans of the run's validation subjects."""
    remedy = f"name labelled scans that it was not trained on: `selfvox calibrate {run} LABELLED/`"
    store = _store_of_run(run)
    if split is None or store is None:
        missing = "split.json" if split is None else "store of its scans"
        raise UsageError(f"{run}: has no {missing}; {remedy}")
    subjects = set(split.validation)
    if not subjects:
        raise UsageError(f"{run}: has no validation subjects; {remedy}")
    cases = [case for case in store.cases if case.subject in subjects]
    return _stored_scans(run, store, cases, model)


def _store_of_run(run: Path) -> Store | None:
    """The store that a run was trained on: its own, that of its folds, or that of its settings."""
    if is_store(run / "store"):
        return open_store(run / "store")
    file = run / "settings.yaml"
    if not file.is_file():
        return None
    settings = safe_yaml.read_yaml(file)
    shared = run.absolute().parent / "store"
    if settings.get("folds") is not None and is_store(shared):
        return open_store(shared)
    labelled = settings.get("labelled")
    if isinstance(labelled, str) and is_store(Path(labelled)):
        return open_store(Path(labelled))
    return None


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


def _scan_of_file(case: Case, model: TrainedSegmenter) -> LabelledScan:
    def read() -> tuple[PreparedScan, np.ndarray]:
        assert case.label is not None
        image = read_case(case, len(model.recipe.channel_names))
        label = images.read_label(case.label, image, model.classes)
        return model.recipe.apply(image), label

    return LabelledScan(case.id, case.subject, read)
