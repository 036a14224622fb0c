"""Registered pairs on disk: one record each, and warped copies of the labelled scan.

- `pairs/KEY.json`: transform, quality and copies of one pair; written last, so a pair that has it
  is complete. The key follows from the contents of both scans and from the settings.
- `cases/`, `images/`, `labels/`, `foreground/`: the copies, as in a store.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.preparation import parallel, store
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.ops.metrics import dice_per_class
from selfvox.registration import register
from selfvox.registration.register import Registration
from selfvox.runs.atomic_files import remove_temporary_files
from selfvox.runs.progress import progress_bar
from selfvox.runs.typed_json import parse, read_checked, write_checked

MOST_FOLDED = 0.01  # share of voxels where a displacement folds, beyond which it is not used
# by which a registration may make two scans less alike: those that fit already cannot gain
TOLERANCE = 0.02


@dataclass(frozen=True)
class PairJob:
    """A labelled scan to register to another scan, with all that a worker needs."""

    folder: Path
    moving_store: Store
    moving: StoredCase
    fixed_store: Store
    fixed: StoredCase
    strengths: tuple[float, ...] = ()  # a copy is written for each
    classes: tuple[int, ...] = ()  # above 0

    @property
    def key(self) -> str:
        """Hash of the contents of both scans and of the settings."""
        return store.hash_texts(
            register.SETTINGS,
            str([round(strength, 6) for strength in self.strengths]),
            str(self.fixed.has_label),
            str(self.classes),
            *(
                case.sha256[kind]
                for case in (self.moving, self.fixed)
                for kind in ("images", "labels")
                if kind in case.sha256
            ),
        )[:32]

    @property
    def record_file(self) -> Path:
        """Where the record is written."""
        return self.folder / "pairs" / f"{self.key}.json"


@dataclass(frozen=True, kw_only=True)
class RegisteredPair:
    """The quality of a registration and the copies made with it."""

    labelled: str  # case ids
    unlabelled: str
    similarity_before: float  # correlation where only the centres coincide
    similarity: float
    folded: float  # share of voxels
    volumes: tuple[int, ...]  # of each class of the labelled scan, in voxels
    warped_volumes: tuple[int, ...]  # after the registration, in voxels of the same size
    dice: tuple[float, ...]  # of the carried label, by class, where the other scan has one too
    copies: tuple[str, ...]  # case ids
    seconds: float
    failure: str = ""  # why it is not used


def register_pairs(jobs: Sequence[PairJob], workers: int, title: str) -> list[RegisteredPair]:
    """Register all pairs, except those with record and copies on disk; in the order given.

    Args:
        jobs: pairs.
        workers: processes; 0: one per core.
        title: of the progress bar.

    Raises:
        ResourceError: the disk is full.
        UsageError: greedy is not installed.
    """
    register.check_installed()
    for folder in {job.folder for job in jobs}:
        # of a killed process: the run of the folder is locked
        for kind in ("pairs", "cases", "images", "labels", "foreground"):
            remove_temporary_files(folder / kind)
    pairs = {job.key: _read_pair(job) for job in jobs}
    missing = [job for job in jobs if pairs[job.key] is None]
    with progress_bar(title, len(jobs), len(jobs) - len(missing)) as bar:
        for number, result in parallel.run(register_pair, missing, workers):
            job = missing[number]
            if isinstance(result, parallel.WorkerDiedError):
                result = _failed(job, "the process died, most likely of too little memory", 0.0)
            pairs[job.key] = result
            bar.advance()
    complete = [pairs[job.key] for job in jobs]
    return [pair for pair in complete if pair is not None]


def register_pair(job: PairJob) -> RegisteredPair:
    """Register one pair, write its copies, and its record last.

    Raises:
        ResourceError: the disk is full.
        UsageError: greedy is not installed.
    """
    start = time.monotonic()
    try:
        pair = _register(job, start)
    except DataError as error:
        pair = _failed(job, " ".join(str(error).split()), time.monotonic() - start)
    except MemoryError:
        # not recorded: another time there may be more
        return _failed(job, "needs more memory than there is", time.monotonic() - start)
    job.record_file.parent.mkdir(parents=True, exist_ok=True)
    write_checked(job.record_file, dataclasses.asdict(pair))
    return pair


def read_scan(scans: Store, case: StoredCase) -> np.ndarray:
    """A prepared image (channel, *space) float32.

    Raises:
        DataError: the stored array is damaged.
    """
    return scans.crop(case, (0,) * len(case.shape), case.shape)


def read_label(scans: Store, case: StoredCase) -> np.ndarray:
    """A prepared label (*space).

    Raises:
        DataError: the stored array is damaged, or there is none.
    """
    return scans.label_crop(case, (0,) * len(case.shape), case.shape)


def _register(job: PairJob, start: float) -> RegisteredPair:
    moving = read_scan(job.moving_store, job.moving)
    label = read_label(job.moving_store, job.moving)
    fixed = read_scan(job.fixed_store, job.fixed)
    spacings = (job.moving.spacing_mm, job.fixed.spacing_mm)
    registration = register.register(moving, fixed, *spacings)
    before = register.centred_positions(moving.shape[1:], fixed.shape[1:], *spacings)
    after = registration.positions()
    warped = register.warp_label(label, after)
    # a carried volume is counted in voxels of the other scan
    voxel_ratio = float(np.prod(job.fixed.spacing_mm) / np.prod(job.moving.spacing_mm))
    dice: tuple[float, ...] = ()
    if job.fixed.has_label:
        truth = read_label(job.fixed_store, job.fixed)
        values = np.array([0, *job.classes])
        dice = tuple(
            dice_per_class(
                np.searchsorted(values, warped), np.searchsorted(values, truth), len(values)
            )
        )
    pair = RegisteredPair(
        labelled=job.moving.id,
        unlabelled=job.fixed.id,
        similarity_before=register.similarity(register.warp_image(moving, before), fixed),
        similarity=register.similarity(register.warp_image(moving, after), fixed),
        folded=register.folded_share(registration.displacement),
        volumes=tuple(int((label == value).sum()) for value in job.classes),
        warped_volumes=tuple(
            round(float((warped == value).sum()) * voxel_ratio) for value in job.classes
        ),
        dice=dice,
        copies=(),
        seconds=time.monotonic() - start,
    )
    failure = _failure(pair, job.classes)
    if failure:
        return dataclasses.replace(pair, failure=failure)
    copies = tuple(
        _write_copy(job, moving, label, registration, number)
        for number in range(len(job.strengths))
    )
    return dataclasses.replace(pair, copies=copies, seconds=time.monotonic() - start)


def _failure(pair: RegisteredPair, classes: Sequence[int]) -> str:
    """Why a registration cannot be used; empty where it can."""
    if pair.similarity < pair.similarity_before - TOLERANCE:
        return (
            f"the scans are less alike after registration ({pair.similarity:.2f}) than before "
            f"({pair.similarity_before:.2f})"
        )
    if pair.folded > MOST_FOLDED:
        return f"the displacement folds in {100 * pair.folded:.1f} % of the voxels"
    for value, before, after in zip(classes, pair.volumes, pair.warped_volumes, strict=True):
        if before and not after:
            return f"class {value} disappears"
    return ""


def _write_copy(
    job: PairJob, moving: np.ndarray, label: np.ndarray, registration: Registration, number: int
) -> str:
    """Write the labelled scan, moved with one of the strengths, as a case; returns its id."""
    positions = registration.positions(job.strengths[number])
    case_id = f"{job.key}-{number}"
    affine = np.array(job.fixed.affine)
    warped = register.warp_label(label, positions)
    case = dataclasses.replace(
        job.moving,
        id=case_id,
        shape=job.fixed.shape,
        spacing_mm=job.fixed.spacing_mm,
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        geometry=job.fixed.geometry,
        label_values=tuple(int(value) for value in np.unique(warped)),
        source_hash=store.hash_texts(job.key, str(number)),
        image_hash=store.hash_texts("copy", job.key, str(number)),
        sources=(),
        sha256={},
        notes=(),
    )
    prepared = PreparedScan(
        data=register.warp_image(moving, positions),
        spacing_mm=job.fixed.spacing_mm,
        affine=affine,
        geometry=job.fixed.geometry,
    )
    return store.write_case(job.folder, case, prepared, warped).id


def copies_of(folder: Path, pair: RegisteredPair) -> list[StoredCase]:
    """The cases of a pair's copies."""
    entries = [store.read_entry(folder, case_id) for case_id in pair.copies]
    return [entry for entry in entries if entry is not None]


def _read_pair(job: PairJob) -> RegisteredPair | None:
    """The record of a pair, if it is complete and its copies are intact."""
    if not job.record_file.exists():
        return None
    try:
        pair: RegisteredPair = parse(
            RegisteredPair, read_checked(job.record_file), str(job.record_file)
        )
    except DataError:
        return None
    copies = copies_of(job.folder, pair)
    is_complete = len(copies) == len(pair.copies) and all(
        store.is_intact(job.folder, copy) for copy in copies
    )
    # the same contents may have other names now
    pair = dataclasses.replace(pair, labelled=job.moving.id, unlabelled=job.fixed.id)
    return pair if is_complete else None


def _failed(job: PairJob, reason: str, seconds: float) -> RegisteredPair:
    return RegisteredPair(
        labelled=job.moving.id,
        unlabelled=job.fixed.id,
        similarity_before=0.0,
        similarity=0.0,
        folded=0.0,
        volumes=(),
        warped_volumes=(),
        dice=(),
        copies=(),
        seconds=seconds,
        failure=reason,
    )
