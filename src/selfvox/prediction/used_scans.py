"""Which scans trained a run, and which are to test it, recognised by subject and contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfvox.data.preparation.leakage import SeenScans, content_hashes
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.runs.run_folder import read_run_record
from selfvox.runs.weights import read_network_card
from selfvox.settings import safe_yaml

# uses of scans
TRAINED = "that trained the run"
TESTED = "of its test subjects"


@dataclass(frozen=True)
class UsedScans:
    """Subjects of a run, and hashes and coarse pictures of their scans, by their use."""

    subjects: Mapping[str, set[str]]
    contents: Mapping[str, set[str]]
    pictures: Mapping[str, CoarsePictures]

    def use(self, subject: str, contents: set[str], picture: str = "") -> str | None:
        """The use of a scan; None if it has none.

        Args:
            subject: of the scan.
            contents: hashes of its files or prepared voxels.
            picture: its coarse picture, by which a resampled copy is recognised; empty where the
                scan is not prepared.
        """
        for name in self.subjects:
            if subject in self.subjects[name] or contents & self.contents[name]:
                return name
            if self.pictures[name].find(picture) is not None:
                return name
        return None


def used_scans(run: Path, split: Split | None) -> UsedScans:
    """What trained a run, copies and pseudo-labels included, and what it is to be tested on.

    Validation subjects may calibrate. Without the store of the run, their scans look like those
    that trained, by their contents, and are left out.
    """
    seen = _training_scans(run)
    trained = set(seen["subjects"])
    contents = set(seen["image_hashes"])
    # of records of older versions there are none
    pictures = set(seen.get("coarse_pictures", ()))
    if split is None:
        return UsedScans({TRAINED: trained}, {TRAINED: contents}, _pictures({TRAINED: pictures}))
    trained = trained.union(split.train) - set(split.validation)
    store = store_of_run(run)
    cases = () if store is None else store.cases
    validation = [case for case in cases if case.subject in split.validation]
    others = [case for case in cases if case.subject not in split.validation]
    test = [case for case in cases if case.subject in split.test]
    # a scan that occurs under another subject too was not only validated on
    contents -= _hashes(validation) - _hashes(others)
    pictures -= _picture_texts(validation) - _picture_texts(others)
    return UsedScans(
        {TRAINED: trained, TESTED: set(split.test)},
        {TRAINED: contents, TESTED: _hashes(test)},
        _pictures({TRAINED: pictures, TESTED: _picture_texts(test)}),
    )


def _hashes(cases: Iterable[StoredCase]) -> set[str]:
    return {digest for case in cases for digest in content_hashes(case)}


def _picture_texts(cases: Iterable[StoredCase]) -> set[str]:
    return {case.coarse_picture for case in cases}


def _pictures(texts: Mapping[str, set[str]]) -> dict[str, CoarsePictures]:
    return {name: CoarsePictures(sorted(texts[name])) for name in texts}


def _training_scans(run: Path) -> SeenScans:
    """The scans of a run's fine-tuning; if it has no record, also those of its pre-training."""
    data = read_run_record(run).get("data")
    return read_network_card(run).seen if data is None else data


def store_of_run(run: Path) -> Store | None:
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
