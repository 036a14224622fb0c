"""Prepared cases on disk: one array per scan, read in part, and a table of the cases.

- `manifest.json`: format, recipe, classes, and the SHA-256 of the table of the cases.
- `cases.safetensors`: that table, which is mapped; see `case_columns`.
- `stamps.npy`: sizes and times of the arrays' files, so that they are not hashed again.
- `cases/ID.json`: one case: geometry, source files, SHA-256 of its arrays; written last, so a case
  that has it is complete. `prepare` makes the table from them; nothing else reads them.
- `images/ID.npy`: float16 (channel, *space).
- `labels/ID.npy`: uint8 or uint16 (*space), where the case has a label.
- `foreground/ID.npy`: int32 (n, 1 + spatial_dims): class and position of up to 1000 voxels of
  each labelled class.
- `rejected.csv`: scans that could not be used, and why.
- `split.json`: which subjects are for training, validation and testing.

The arrays are plain and memory-mapped. On our scans a random crop took 0.4 of the CPU time of
blosc2 (zstd) and less than a tenth of zarr's, for 2.7 times the bytes; and any tool can read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import resource
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.preparation import manifest, split
from selfvox.data.preparation.case_columns import KINDS
from selfvox.data.preparation.case_table import CaseTable, cases_of_subjects, texts
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.stored_arrays import StoredArray
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.ops import regions
from selfvox.ops.mirrored_crop import mirrored_crop
from selfvox.ops.regions import Regions
from selfvox.runs import atomic_files
from selfvox.runs.card import ClassNumber
from selfvox.runs.typed_json import parse, read_checked, write_checked

FOREGROUND_PER_CLASS = 1000
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# arrays kept mapped per process: mapping one again takes longer than reading a crop from it, but
# each needs a file descriptor
_MOST_OPEN = 4096 if _DESCRIPTORS == resource.RLIM_INFINITY else min(4096, _DESCRIPTORS // 4)

ClassNames = Mapping[ClassNumber, str] | None  # by number
# of a file: inode, size, mtime in ns; None if it is missing
_FileState = tuple[int, int, int] | None


@dataclass(frozen=True)
class Store:
    """A finished store; it maps an array at its first use.

    The contents of a file are checked then, unless its size and time are those of the preparation.
    """

    path: Path
    recipe: Recipe
    classes: dict[int, str] | None
    cases: Sequence[StoredCase]  # in the order of their ids; a `CaseTable` as it was opened
    regions: Regions | None = None  # sets of classes that the data set declares
    # shared by the stores that `dataclasses.replace` makes, so that one limit holds for all of them
    _open: OrderedDict[tuple[Path, str, str], StoredArray] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    _checked: set[tuple[Path, str, str, _FileState]] = field(
        default_factory=set, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        # a loader's worker gets no arrays: it maps and checks them itself
        return Store, (self.path, self.recipe, self.classes, self.cases, self.regions)

    def crop(self, case: StoredCase, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The image from voxel `start` on, float32 (channel, *size).

        Beyond the scan it is mirrored; the edge voxel appears twice.

        Raises:
            DataError: the stored array is damaged, or a value is not finite.
        """
        # float16 halves the bytes on disk; networks take float32
        crop = mirrored_crop(self._array(case, "images"), start, size).astype(np.float32)
        if not np.isfinite(crop).all():
            entry = self.path / "cases" / f"{case.id}.json"
            raise DataError(
                f"{self.path}: case {case.id} has values that are not finite; delete {entry} and "
                "run `selfvox prepare` again"
            )
        return crop

    def label_crop(self, case: StoredCase, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The label of the same crop (*size), uint8, or uint16 if a class is above 255."""
        return mirrored_crop(self._array(case, "labels"), start, size)

    def foreground(self, case: StoredCase) -> np.ndarray:
        """Class and position of up to 1000 voxels of each labelled class.

        int32 (n, 1 + spatial_dims), class first.
        """
        return self._array(case, "foreground")

    def split(self) -> Split | None:
        """Who trains, validates and tests; None if that was not decided."""
        return split.read_split_if_present(self.path / "split.json")

    def without_test_subjects(self) -> Sequence[StoredCase]:
        """The cases that may be trained on: all except those of the split's test subjects."""
        stored_split = self.split()
        test = stored_split.test if stored_split else ()
        return cases_of_subjects(self.cases, test, others=True)

    def record(self, cases: Sequence[StoredCase]) -> dict[str, Any]:
        """Number of cases and one hash of their ids and contents, for the record of a run."""
        pairs = zip(texts(cases, "id"), texts(cases, "source_hash"), strict=True)
        lines = [f"{case_id} {contents}" for case_id, contents in sorted(pairs)]
        return {"cases": len(lines), "sha256": hash_texts(*lines)}

    def _array(self, case: StoredCase, kind: str) -> np.ndarray:
        key = (self.path, kind, case.id)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key].values
        # another process may prepare the store again between two openings
        state = _file_state(self.path / kind / f"{case.id}.npy")
        is_untouched = state is not None and case.stamps.get(kind) == state[1:]
        array = StoredArray(
            self.path,
            case,
            kind,
            channels=len(self.recipe.channel_names),
            check=not is_untouched and (*key, state) not in self._checked,
        )
        if not is_untouched:
            self._checked.add((*key, state))
        self._open[key] = array
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return array.values


def open_store(path: Path) -> Store:
    """Open a finished store.

    Raises:
        DataError: no store, unfinished, of another version, or damaged.
    """
    content = manifest.read_manifest(path)
    try:
        recipe = Recipe.from_dict(content["recipe"])
        classes = parse(ClassNames, content["classes"], "classes")
        declared_regions = regions.regions_from_json(content.get("regions"))
    except (DataError, TypeError, ValueError) as error:
        raise manifest.damaged(path, str(error)) from None
    columns = manifest.read_columns(path, content, recipe.spatial_dims)
    if columns is None:
        raise DataError(
            f"{path}: this store is unfinished; run the same `selfvox prepare` again, it continues "
            "where it stopped"
        )
    return Store(path, recipe, classes, CaseTable(columns), declared_regions)


def write_case(
    path: Path,
    case: StoredCase,
    prepared: PreparedScan,
    label: np.ndarray | None,
    ignored: int | None = None,
) -> StoredCase:
    """Write a case's arrays, then its JSON; returns the case with the arrays' SHA-256.

    Args:
        path: of the store.
        case: without the SHA-256.
        prepared: its image is stored as float16, clipped to the range of that type.
        label: (*space) on the same grid.
        ignored: value of the label that is no class.
    """
    arrays = {"images": _as_stored(prepared.data)}
    if label is not None:
        arrays["labels"] = label
        classes = label if ignored is None else np.where(label == ignored, 0, label)
        arrays["foreground"] = sample_labelled_voxels(classes)
    digests = {}
    for kind, array in arrays.items():
        target = path / kind / f"{case.id}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        # a name that a power failure takes is missing, and prepared again
        with atomic_files.atomic_write(target, sync_folder=False) as temporary:
            np.save(temporary, array, allow_pickle=False)
            digests[kind] = atomic_files.sha256(temporary)
    case = with_stamps(path, dataclasses.replace(case, sha256=digests))
    write_entry(path, case)
    return case


def with_stamps(path: Path, case: StoredCase) -> StoredCase:
    """The case with the present sizes and times of its arrays, which were just checked."""
    states = {kind: _file_state(path / kind / f"{case.id}.npy") for kind in case.sha256}
    stamps = {kind: state[1:] for kind, state in states.items() if state is not None}
    return dataclasses.replace(case, stamps=stamps)


def image_digest(prepared: PreparedScan) -> str:
    """The SHA-256 that the file of this scan's image has in a store."""
    file = io.BytesIO()
    np.save(file, _as_stored(prepared.data), allow_pickle=False)
    return hashlib.sha256(file.getbuffer()).hexdigest()


def _as_stored(data: np.ndarray) -> np.ndarray:
    largest = np.finfo(np.float16).max
    stored: np.ndarray = np.clip(data, -largest, largest).astype(np.float16)
    return stored


def write_entry(path: Path, case: StoredCase) -> None:
    """Write a case's JSON, which says that its arrays are complete."""
    entry = path / "cases" / f"{case.id}.json"
    entry.parent.mkdir(parents=True, exist_ok=True)
    # one that a power failure takes or damages counts as missing: the case is prepared again
    write_checked(entry, case.to_dict(), sync=False)


def read_entry(path: Path, case_id: str) -> StoredCase | None:
    """A case's JSON; None if it is missing or damaged: the case is then prepared again."""
    entry = path / "cases" / f"{case_id}.json"
    if not entry.exists():
        return None
    try:
        case = StoredCase.from_dict(read_checked(entry))
    except DataError:
        return None
    return case if case.id == case_id else None


def remove_case(path: Path, case_id: str) -> None:
    """Remove a case's files; its JSON first, so that a half-removed case does not count."""
    (path / "cases" / f"{case_id}.json").unlink(missing_ok=True)
    for kind in KINDS:
        (path / kind / f"{case_id}.npy").unlink(missing_ok=True)


def _file_state(file: Path) -> _FileState:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def is_untouched(path: Path, case: StoredCase) -> bool:
    """Whether all arrays of a case have the size and time that they were written with."""
    return bool(case.stamps) and with_stamps(path, case).stamps == case.stamps


def is_intact(path: Path, case: StoredCase) -> bool:
    """Whether all arrays of a case are unchanged, byte for byte."""
    try:
        return all(
            atomic_files.sha256(path / kind / f"{case.id}.npy") == digest
            for kind, digest in case.sha256.items()
        )
    except (OSError, DataError):
        return False


def sample_labelled_voxels(label: np.ndarray) -> np.ndarray:
    """Class and position of up to 1000 voxels of each class above 0, drawn uniformly.

    Returns:
        int32 (n, 1 + label.ndim), class first.
    """
    rng = np.random.default_rng(0)  # fixed: the same label gives the same file
    samples = [np.empty((0, 1 + label.ndim), dtype=np.int32)]
    for value in np.unique(label[label > 0]):
        voxels = np.flatnonzero(label == value)
        if len(voxels) > FOREGROUND_PER_CLASS:
            voxels = np.sort(rng.choice(voxels, FOREGROUND_PER_CLASS, replace=False))
        positions = np.stack(np.unravel_index(voxels, label.shape), axis=1)
        classes = np.full((len(positions), 1), value)
        samples.append(np.concatenate([classes, positions], axis=1).astype(np.int32))
    return np.concatenate(samples)


def hash_texts(*texts: str) -> str:
    """SHA-256 of several texts, in order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def recipe_digest(recipe: Recipe, classes: Mapping[int, str] | None) -> str:
    """Hash of all that a stored case depends on, except its files.

    These are the recipe, the allowed label values and the version of this format.
    """
    values = None if classes is None else sorted(classes)
    return hash_texts(json.dumps([manifest.VERSION, recipe.to_dict(), values], sort_keys=True))
