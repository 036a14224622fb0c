"""From the files of one case to its place in the store; what a worker does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.formats.safe_open import open_regular
from selfvox.data.naming import printable
from selfvox.data.preparation import store
from selfvox.data.preparation.recipe import Recipe, inside_box
from selfvox.data.preparation.store import StoredCase
from selfvox.data.sources import Case
from selfvox.errors import DataError, SelfvoxError


@dataclass(frozen=True)
class CaseJob:
    """A case to be prepared, and all that it takes."""

    store: Path
    case: Case
    recipe: Recipe
    classes: tuple[int, ...] | None  # values a label may have; None: any
    recipe_hash: str


@dataclass(frozen=True)
class PreparedCase:
    """A case that lies in the store; `made` is False where the contents of its files turned out to be unchanged."""

    case: StoredCase
    made: bool


@dataclass(frozen=True)
class Rejected:
    """A case that cannot be used, and why, in one line."""

    id: str
    file: str
    reason: str


def read_case(case: Case, channels: int) -> Image:
    """The case's image with all its channels, from one file or from one file each.

    Raises:
        DataError: a file cannot be used, or the channels lie on different grids.
    """
    if len(case.images) == 1 or case.stacked:
        if case.stacked:
            image = images.read_slices(case.images, case.id, case.allow_gap)
        else:
            image = images.read_image(case.images[0], channels)
        if len(image.data) != channels:
            raise DataError(
                f"{image.name}: has {len(image.data)} channels where the data set has {channels}; leave it out"
            )
        return image
    parts = [images.read_image(path) for path in case.images]
    first = parts[0]
    for part in parts:
        if len(part.data) != 1 or part.shape != first.shape:
            raise DataError(
                f"{part.name}: shape {part.data.shape} does not fit {first.name} ({first.shape}); resample it"
            )
        if images.grid_distance_voxels(part.affine, first) > 0:
            raise DataError(
                f"{part.name}: lies on another grid than {first.name} (their affines differ); resample it"
            )
    notes = tuple(note for part in parts for note in part.notes)
    # channels of different types keep their values in the wider one
    return replace(first, data=np.concatenate([part.data for part in parts]), notes=notes)


def file_states(case: Case) -> tuple[tuple[int, int], ...] | None:
    """Size in bytes and time of the last change in ns of each of the case's files; None where one cannot be looked at.

    Renaming counts as a change: two files that change names may have one size, and one mtime from their archive.
    """
    try:
        found = [path.stat() for path in _files(case)]
    except OSError:
        return None
    return tuple((each.st_size, max(each.st_mtime_ns, each.st_ctime_ns)) for each in found)


def image_hash(case: Case) -> str:
    """Of the contents of the case's image files, to find one scan under two names.

    Raises:
        DataError: a file cannot be read.
    """
    return _joined(case, [_digest(path, _called(case)) for path in case.images])


def request_hash(case: Case, recipe_hash: str) -> str:
    """The recipe's hash, changed where the case is read in another way than usual."""
    return store.digest(recipe_hash, "gaps filled") if case.allow_gap else recipe_hash


def prepare_case(job: CaseJob) -> PreparedCase | Rejected:
    """Prepare a case and write it, unless what lies in the store was made from the same contents.

    Raises:
        ResourceError: the disk is full.
    """
    try:
        return _make(job)
    except MemoryError:
        return make_rejected(job.case, "needs more memory than there is; use fewer --workers")
    except SelfvoxError as error:
        if not isinstance(error, DataError):
            raise
        return make_rejected(job.case, str(error))
    except (
        Exception
    ) as error:  # a reader's surprise at one file must not end the work on the others
        return make_rejected(job.case, f"cannot be prepared ({type(error).__name__}: {error})")


def with_absolute_paths(case: Case) -> Case:
    """The same case, found from any folder: workers on a cluster have their own."""
    label = None if case.label is None else case.label.absolute()
    return replace(case, images=tuple(path.absolute() for path in case.images), label=label)


def main_file(case: Case) -> str:
    """What a table calls the case's file; of DICOM slices the id, since their names may be a patient's."""
    return case.id if case.stacked else printable(case.images[0].name)


def make_rejected(case: Case, reason: str) -> Rejected:
    """A rejection that names the file and stays one line."""
    name = main_file(case)
    return Rejected(case.id, name, " ".join(reason.removeprefix(f"{name}: ").split()))


def _make(job: CaseJob) -> PreparedCase | Rejected:
    case, before = job.case, file_states(job.case)
    digests = [_digest(path, _called(case)) for path in _files(case)]
    source_hash = store.digest(job.recipe_hash, *digests)
    known = store.read_case(job.store, case.id)
    if (
        known is not None
        and known.source_hash == source_hash
        and store.is_intact(job.store, known)
        and before is not None
    ):
        known = replace(known, subject=case.subject, grade=case.grade, sources=before)
        store.write_entry(job.store, known)
        return PreparedCase(known, made=False)

    image = read_case(case, len(job.recipe.channel_names))
    prepared = job.recipe.apply(image)
    label: np.ndarray | None = None
    values: tuple[int, ...] = ()
    notes = image.notes
    if case.label is not None:
        original = images.read_label(case.label, image, job.classes)
        label = job.recipe.apply_label(original, prepared.geometry)
        values = tuple(int(value) for value in np.unique(original))
        cut = np.count_nonzero(original) - np.count_nonzero(inside_box(original, prepared.geometry))
        if cut:
            notes = (
                *notes,
                f"{cut} labelled voxels lie in the background, outside the box around the foreground",
            )
    if before is None or file_states(case) != before:
        raise DataError(f"{image.name}: changed while it was read; run the same command again")
    stored = StoredCase(
        id=case.id,
        subject=case.subject,
        grade=case.grade,
        shape=prepared.data.shape[1:],
        spacing_mm=prepared.spacing_mm,
        affine=tuple(tuple(float(value) for value in row) for row in prepared.affine),
        geometry=prepared.geometry,
        has_label=label is not None,
        label_values=values,
        recipe_hash=job.recipe_hash,
        source_hash=source_hash,
        image_hash=_joined(case, digests[: len(case.images)]),
        sources=before,
        sha256={},
        notes=notes,
    )
    return PreparedCase(store.write_case(job.store, stored, prepared, label), made=True)


def _files(case: Case) -> tuple[Path, ...]:
    return case.images if case.label is None else (*case.images, case.label)


def _called(case: Case) -> str:
    return f"{case.id}: a slice" if case.stacked else ""


def _joined(case: Case, digests: Sequence[str]) -> str:
    # slices are called and ordered otherwise in each export
    return store.digest(*(sorted(set(digests)) if case.stacked else digests))


def _digest(path: Path, called: str) -> str:
    total = hashlib.sha256()
    with open_regular(path, called) as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
