"""Prepared cases on disk: one array per scan, read in part, and a manifest.

- `manifest.json`: format, recipe, classes and every case.
- `cases/ID.json`: one case: geometry, what it was made from, SHA-256 of its arrays; written last, so it says "done".
- `images/ID.npy`: float16 (channel, *space).
- `labels/ID.npy`: uint8 or uint16 (*space), where the case has a label.
- `foreground/ID.npy`: int32 (n, 1 + spatial_dims): class and place of up to 1000 voxels of each labelled class.
- `rejected.csv`: scans that could not be used, and why.
- `split.json`: which subjects are for training, validation and testing.

The arrays are plain and memory-mapped. On our scans a random crop took 0.4 of the CPU time that blosc2 (zstd) takes and
less than a tenth of zarr's, for 2.7 times the bytes; and any tool can read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from selfvox.data import naming
from selfvox.data.formats import strict_json
from selfvox.data.preparation import split
from selfvox.data.preparation.recipe import Geometry, PreparedScan, Recipe
from selfvox.data.preparation.split import Split
from selfvox.errors import DataError
from selfvox.ops import regions
from selfvox.ops.regions import Regions
from selfvox.runs import atomic_files

FORMAT, VERSION = "selfvox-store", 1
FOREGROUND_PER_CLASS = 1000
# a case takes about 1 kB, and 33 bytes for each DICOM slice: a million scans, or 75 000 series of 400 slices
_LARGEST_MANIFEST_BYTES = 2**30
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# arrays kept mapped per process; each holds a file descriptor, and to map one anew takes longer than to cut from it
_MOST_OPEN = 4096 if _DESCRIPTORS == resource.RLIM_INFINITY else min(4096, _DESCRIPTORS // 4)
_KINDS = ("images", "labels", "foreground")

_State = (
    tuple[int, int, int] | None
)  # of a file: inode, size, mtime in ns; None where it is not there


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One prepared case."""

    id: str
    subject: str
    shape: tuple[int, ...]  # of the prepared array, without its channels
    spacing_mm: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]  # (4, 4): prepared voxel -> mm in RAS+ world
    geometry: Geometry
    has_label: bool
    label_values: tuple[int, ...]  # that occur in the scan's own label
    grade: int | None
    recipe_hash: str  # see `recipe_digest`
    source_hash: str  # of that and the contents of the source files, the label's too
    image_hash: str  # of the contents of the image files alone, to find one scan under two names
    sources: tuple[
        tuple[int, int], ...
    ]  # size in bytes and time of the last change in ns of each source file
    sha256: dict[str, str]  # images, labels, foreground -> digest of the array's file
    notes: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label, or a grade."""
        return self.has_label or self.grade is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the file calls the geometry `trail`."""
        values = dataclasses.asdict(self)
        return {"trail" if name == "geometry" else name: value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredCase:
        """The inverse of `to_dict`.

        Raises:
            DataError: an id that is not safe as a file name.
        """
        values = dict(values)
        if naming.safe_name(str(values["id"])) != values["id"]:
            raise DataError(f"case id {values['id']!r} is no file name; prepare the scans again")
        for name in ("shape", "spacing_mm", "label_values", "notes"):
            values[name] = tuple(values[name])
        for name in ("affine", "sources"):
            values[name] = tuple(tuple(each) for each in values[name])
        values["geometry"] = Geometry.from_dict(values.pop("trail"))
        return cls(**values)


@dataclass(frozen=True)
class Store:
    """A finished store. Opens its arrays when they are asked for, and checks each file once per process."""

    path: Path
    recipe: Recipe
    classes: dict[int, str] | None
    cases: tuple[StoredCase, ...]  # in the order of their ids
    regions: Regions | None = None  # sets of classes that the data set declares
    _open: OrderedDict[tuple[str, str], np.ndarray] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    _checked: set[tuple[str, str, _State]] = field(default_factory=set, repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        # a loader's worker gets the facts, and maps and checks the arrays by itself
        return Store, (self.path, self.recipe, self.classes, self.cases, self.regions)

    def crop(self, case: StoredCase, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The image from voxel `start` on, float32 (channel, *size); beyond the scan it is mirrored, edge voxel twice.

        Raises:
            DataError: the stored array is damaged.
        """
        return mirrored_crop(self._array(case, "images"), start, size).astype(np.float32)

    def label_crop(self, case: StoredCase, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The label of the same crop (*size), uint8, or uint16 where a class is above 255; mirrored alike."""
        return mirrored_crop(self._array(case, "labels"), start, size)

    def foreground(self, case: StoredCase) -> np.ndarray:
        """Class and place of up to 1000 voxels of each labelled class: int (n, 1 + spatial_dims), class first."""
        return np.asarray(self._array(case, "foreground"))

    def split(self) -> Split | None:
        """Who trains, validates and tests, if that was decided when the store was made."""
        return split.read_split_if_present(self.path / "split.json")

    def without_test_subjects(self) -> list[StoredCase]:
        """The cases that may be trained on or looked at: all but those of the split's test subjects."""
        fixed = self.split()
        test = set(fixed.test) if fixed else set()
        return [case for case in self.cases if case.subject not in test]

    def record(self, cases: Iterable[StoredCase]) -> dict[str, Any]:
        """What a run notes of its data: how many cases, and one hash over their ids and contents."""
        lines = [f"{case.id} {case.source_hash}" for case in sort_cases(cases)]
        return {"cases": len(lines), "sha256": digest(*lines)}

    def _array(self, case: StoredCase, kind: str) -> np.ndarray:
        key = (kind, case.id)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        # another process may prepare the store anew between two openings
        state = _state(self.path / kind / f"{case.id}.npy")
        array = read_array(self.path, case, kind, check=(*key, state) not in self._checked)
        self._checked.add((*key, state))
        self._open[key] = array
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return array


def is_store(path: Path) -> bool:
    """Whether the folder looks like a store, finished or not."""
    return (path / "manifest.json").is_file() and (path / "cases").is_dir()


def open_store(path: Path) -> Store:
    """Open a finished store.

    Raises:
        DataError: no store, unfinished, of another version, or its manifest is damaged.
    """
    manifest = read_manifest(path)
    if manifest["cases"] is None:
        raise DataError(
            f"{path}: this store is unfinished; run the same `selfvox prepare` again, it goes on where it stopped"
        )
    try:
        return Store(
            path=path,
            recipe=Recipe.from_dict(manifest["recipe"]),
            classes=classes_from_json(manifest["classes"]),
            cases=tuple(StoredCase.from_dict(each) for each in manifest["cases"]),
            regions=regions.regions_from_json(manifest.get("regions")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path / 'manifest.json'}: damaged ({error!r}); delete it and run `selfvox prepare` again"
        ) from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as plain values; its `cases` is None while the store is being built.

    Raises:
        DataError: no store, not JSON, or of another version.
    """
    if not is_store(path):
        raise DataError(f"{path}: not a store; make one with `selfvox prepare SCANS --out {path}`")
    manifest = strict_json.read_json(path / "manifest.json", _LARGEST_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{path / 'manifest.json'}: not the manifest of a store; prepare the scans into another folder"
        )
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path}: store of version {manifest.get('version')}, but this selfvox reads version {VERSION}; "
            "prepare the scans into another folder"
        )
    if not {"asked", "recipe", "classes", "cases"} <= manifest.keys():
        raise DataError(
            f"{path / 'manifest.json'}: damaged (entries are missing); prepare into another folder"
        )
    return manifest


def write_manifest(
    path: Path,
    recipe: Recipe,
    classes: Mapping[int, str] | None,
    cases: Sequence[StoredCase] | None,
    asked: Mapping[str, Any],
    parts: Regions | None = None,
) -> None:
    """Write the manifest; `asked` is what the recipe was made from, to know when another is wanted."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "asked": dict(asked),
        "recipe": recipe.to_dict(),
        "classes": None
        if classes is None
        else {str(number): name for number, name in classes.items()},
        "regions": regions.regions_to_json(parts),
        "cases": None,
    }
    lines = [
        f" {json.dumps(name)}: {json.dumps(each, allow_nan=False)}" for name, each in value.items()
    ]
    if cases is not None:
        entries = [json.dumps(case.to_dict(), allow_nan=False) for case in sort_cases(cases)]
        lines[-1] = ' "cases": [\n  ' + ",\n  ".join(entries) + "\n ]"
    atomic_files.write_text(path / "manifest.json", "{\n" + ",\n".join(lines) + "\n}\n")


def sort_cases(cases: Iterable[StoredCase]) -> list[StoredCase]:
    """Cases in the natural order of their ids: `scan_2` before `scan_10`."""
    return sorted(cases, key=lambda case: naming.natural_key(case.id))


def grades(cases: Iterable[StoredCase]) -> dict[str, int]:
    """The highest grade of each subject's cases; without the subjects that have none."""
    found: dict[str, int] = {}
    for case in cases:
        if case.grade is not None:
            found[case.subject] = max(case.grade, found.get(case.subject, case.grade))
    return found


def write_case(
    path: Path, case: StoredCase, prepared: PreparedScan, label: np.ndarray | None
) -> StoredCase:
    """Write a case's arrays, then its JSON; returns it with the arrays' SHA-256."""
    largest = np.finfo(np.float16).max
    arrays = {"images": np.clip(prepared.data, -largest, largest).astype(np.float16)}
    if label is not None:
        arrays["labels"] = label
        arrays["foreground"] = labelled_voxels(label)
    digests = {}
    for kind, array in arrays.items():
        target = path / kind / f"{case.id}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.atomic_write(target) as temporary:
            np.save(temporary, array, allow_pickle=False)
            digests[kind] = atomic_files.sha256(temporary)
    case = dataclasses.replace(case, sha256=digests)
    write_entry(path, case)
    return case


def write_entry(path: Path, case: StoredCase) -> None:
    """Write a case's JSON, which says that its arrays are there."""
    entry = path / "cases" / f"{case.id}.json"
    entry.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(entry, case.to_dict())


def read_case(path: Path, case_id: str) -> StoredCase | None:
    """A case's own JSON; None where there is none or it cannot be used, since it is then simply made again."""
    entry = path / "cases" / f"{case_id}.json"
    if not entry.exists():
        return None
    try:
        case = StoredCase.from_dict(strict_json.read_json(entry))
    except (DataError, KeyError, TypeError, ValueError):
        return None
    return case if case.id == case_id else None


def remove_case(path: Path, case_id: str) -> None:
    """Remove what belongs to a case; its JSON first, so that a half-removed case is no case."""
    (path / "cases" / f"{case_id}.json").unlink(missing_ok=True)
    for kind in _KINDS:
        (path / kind / f"{case_id}.npy").unlink(missing_ok=True)


def read_array(path: Path, case: StoredCase, kind: str, *, check: bool) -> np.ndarray:
    """Map one array of a case; `check` compares its SHA-256 first.

    Raises:
        DataError: absent or damaged; the message says how to make it again.
    """
    file = path / kind / f"{case.id}.npy"
    remedy = f"run `selfvox prepare SCANS --out {path}` again, it makes the damaged cases anew"
    if kind not in case.sha256:
        raise DataError(f"{path}: case {case.id} has no {kind}; use a labelled case")
    try:
        if check and atomic_files.sha256(file) != case.sha256[kind]:
            raise DataError(f"{file}: case {case.id} is damaged (its SHA-256 differs); {remedy}")
        return cast(np.ndarray, np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: case {case.id} cannot be read ({error}); {remedy}") from None


def _state(file: Path) -> _State:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_intact(path: Path, case: StoredCase) -> bool:
    """Whether all arrays of a case are there, byte for byte."""
    try:
        return all(
            atomic_files.sha256(path / kind / f"{case.id}.npy") == digest
            for kind, digest in case.sha256.items()
        )
    except OSError:
        return False


def mirrored_crop(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copy `size` voxels of the last axes from `start` on, mirrored beyond the array as often as it takes.

    Equal to a slice of `np.pad(array, ..., mode="symmetric")`, without padding or reading the whole.
    """
    spatial = len(size)
    read: list[slice] = []
    take: list[np.ndarray | None] = []
    for extent, first, count in zip(array.shape[-spatial:], start, size, strict=True):
        if first >= 0 and first + count <= extent:
            read.append(slice(first, first + count))
            take.append(None)
            continue
        place = np.arange(first, first + count) % (2 * extent)
        place = np.where(place < extent, place, 2 * extent - 1 - place)
        low = int(place.min())
        read.append(slice(low, int(place.max()) + 1))
        take.append(place - low)
    every: list[slice] = [slice(None)] * (array.ndim - spatial)
    part = array[tuple(every + read)]
    for axis, place in enumerate(take, start=array.ndim - spatial):
        if place is not None:
            part = np.take(part, place, axis=axis)
    return np.array(part, order="C")


def labelled_voxels(label: np.ndarray) -> np.ndarray:
    """Class and place of up to 1000 voxels of each class above 0, drawn evenly; int32 (n, 1 + label.ndim)."""
    rng = np.random.default_rng(0)  # a fixed draw: the same label gives the same file
    found = [np.empty((0, 1 + label.ndim), dtype=np.int32)]
    for value in np.unique(label[label > 0]):
        voxels = np.flatnonzero(label == value)
        if len(voxels) > FOREGROUND_PER_CLASS:
            voxels = np.sort(rng.choice(voxels, FOREGROUND_PER_CLASS, replace=False))
        places = np.stack(np.unravel_index(voxels, label.shape), axis=1)
        found.append(
            np.concatenate([np.full((len(places), 1), value), places], axis=1).astype(np.int32)
        )
    return np.concatenate(found)


def digest(*parts: str) -> str:
    """SHA-256 of several texts, in order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def recipe_digest(recipe: Recipe, classes: Mapping[int, str] | None) -> str:
    """What a stored case depends on besides its files: recipe, allowed label values and this format's version."""
    known = None if classes is None else sorted(classes)
    return digest(json.dumps([VERSION, recipe.to_dict(), known], sort_keys=True))


def classes_from_json(values: Mapping[str, str] | None) -> dict[int, str] | None:
    """Class names by number, from JSON's text keys."""
    return None if values is None else {int(number): str(name) for number, name in values.items()}
