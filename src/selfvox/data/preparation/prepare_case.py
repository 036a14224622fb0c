"""From the files of one case to its place in the store: the work of one worker process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.naming import printable
from selfvox.data.preparation import store
from selfvox.data.preparation.case_label import read_case_label
from selfvox.data.preparation.label_maps import label_map_evidence
from selfvox.data.preparation.likeness import coarse_picture
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case
from selfvox.errors import DataError, SelfvoxError
from selfvox.runs.safe_open import open_regular

LOOKS_LIKE_A_LABEL = "looks like a label map"
LABEL_REMEDY = (
    "pair labels with their scans in a table (image, label), or list them in a text file if they "
    "are scans"
)

# of each source file: size in bytes and time of the last change in ns
FileStates = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CaseJob:
    """A case to prepare, with all that its preparation needs."""

    store: Path
    case: Case
    recipe: Recipe
    classes: tuple[int, ...] | None  # values that a label may have; None: any
    recipe_hash: str


@dataclass(frozen=True)
class PreparedCase:
    """A case in the store; `is_new` is False if the contents of its files turned out unchanged."""

    case: StoredCase
    is_new: bool


@dataclass(frozen=True)
class Rejected:
    """A case that cannot be used, with the reason in one line."""

    id: str
    file: str
    reason: str
    # when it was tried and what that cost, where this is recorded
    work: Mapping[str, Any] = field(default_factory=dict)


def read_case(case: Case, channels: int) -> Image:
    """The case's image with all its channels, from one file, one per channel, or one per slice.

    Raises:
        DataError: a file cannot be used, looks like a label map although no list calls it a scan,
            or the channels are on different grids.
    """
    image = _read_image(case, channels)
    evidence = label_map_evidence(image.data)
    if not evidence:
        return image
    if not case.listed:
        raise DataError(f"{image.name}: {LOOKS_LIKE_A_LABEL} ({evidence}); {LABEL_REMEDY}")
    return replace(image, notes=(*image.notes, f"{LOOKS_LIKE_A_LABEL} ({evidence})"))


def _read_image(case: Case, channels: int) -> Image:
    if len(case.images) > 1 and not case.stacked:
        return _read_channels(case)
    if case.stacked:
        image = images.read_slices(case.images, case.id, case.allow_gap)
    else:
        image = _with_channels(images.read_image(case.images[0], channels), channels)
    if len(image.data) != channels:
        raise DataError(
            f"{image.name}: has {len(image.data)} channels where the data set has {channels}; "
            "leave it out"
        )
    return image


def _with_channels(image: Image, channels: int) -> Image:
    """A grey picture as the others of its data set are saved, in one channel or in three."""
    if image.spatial_dims != 2 or len(image.data) == channels:
        return image
    if channels == 1 and len(image.data) == 3 and (image.data == image.data[:1]).all():
        note = "a grey picture in three channels, read as one"
        return replace(image, data=image.data[:1], notes=(*image.notes, note))
    if channels == 3 and len(image.data) == 1:
        note = "a grey picture among coloured ones, read as three equal channels"
        return replace(image, data=np.repeat(image.data, 3, axis=0), notes=(*image.notes, note))
    return image


def _read_channels(case: Case) -> Image:
    """The image of a case that has one file per channel."""
    channels = [images.read_image(path) for path in case.images]
    first = channels[0]
    for channel in channels:
        if len(channel.data) != 1 or channel.shape != first.shape:
            raise DataError(
                f"{channel.name}: shape {channel.data.shape} does not fit {first.name} "
                f"({first.shape}); resample it"
            )
        if images.grid_distance_voxels(channel.affine, first) > 0:
            raise DataError(
                f"{channel.name}: is on another grid than {first.name} (their affines differ); "
                "resample it"
            )
    notes = tuple(note for channel in channels for note in channel.notes)
    # channels of different types keep their values in the wider one
    data = np.concatenate([channel.data for channel in channels])
    return replace(first, data=data, notes=notes)


def file_states(case: Case) -> FileStates | None:
    """Size in bytes and time of the last change in ns of each file; None if one is unreadable.

    Renaming counts as a change: two files that swap their names may have one size, and one mtime
    from their archive.
    """
    try:
        stats = [path.stat() for path in _files(case)]
    except OSError:
        return None
    return tuple((stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns)) for stat in stats)


def image_hash(case: Case) -> str:
    """Hash of the contents of the case's image files, to find one scan under two names.

    Raises:
        DataError: a file cannot be read.
    """
    return combine_hashes(case, [_file_hash(path, case) for path in case.images])


def combine_hashes(case: Case, digests: Sequence[str]) -> str:
    """One hash of those of the case's image files."""
    # each export names and orders the slices of a series differently
    return store.hash_texts(*(sorted(set(digests)) if case.stacked else digests))


def request_hash(case: Case, recipe_hash: str) -> str:
    """The recipe's hash, changed if the case is read with an option."""
    return store.hash_texts(recipe_hash, "gaps filled") if case.allow_gap else recipe_hash


def prepare_case(job: CaseJob) -> PreparedCase | Rejected:
    """Prepare a case and write it, unless the stored one was made from the same contents.

    Raises:
        ResourceError: the disk is full.
    """
    try:
        return _prepare(job)
    except MemoryError:
        return make_rejected(job.case, "needs more memory than there is; use fewer --workers")
    except DataError as error:
        return make_rejected(job.case, str(error))
    except SelfvoxError:
        raise
    # an unforeseen error in one file must not end the work on the others
    except Exception as error:
        return make_rejected(job.case, f"cannot be prepared ({type(error).__name__}: {error})")


def with_absolute_paths(case: Case) -> Case:
    """The same case with absolute paths: workers of a cluster have their own working folder."""
    label = None if case.label is None else case.label.absolute()
    return replace(case, images=tuple(path.absolute() for path in case.images), label=label)


def main_file(case: Case) -> str:
    """The case's file in a table: its path from the folder that was named.

    Of DICOM slices the id, since their names may be a patient's.
    """
    return case.file or (case.id if case.stacked else printable(case.images[0].name))


def make_rejected(case: Case, reason: str) -> Rejected:
    """A rejection that names the file and stays one line."""
    # readers begin with the name of the file, without its folders
    name = case.id if case.stacked else printable(case.images[0].name)
    return Rejected(case.id, main_file(case), " ".join(reason.removeprefix(f"{name}: ").split()))


def _prepare(job: CaseJob) -> PreparedCase | Rejected:
    case = job.case
    states = file_states(case)
    digests = [_file_hash(path, case) for path in _files(case)]
    source_hash = store.hash_texts(job.recipe_hash, *digests)
    unchanged = _stored_case(job, source_hash)
    if unchanged is not None and states is not None:
        unchanged = replace(
            unchanged,
            subject=case.subject,
            grade=case.grade,
            target=case.target,
            sources=states,
        )
        store.write_entry(job.store, unchanged)
        return PreparedCase(unchanged, is_new=False)

    image = read_case(case, len(job.recipe.channel_names))
    prepared = job.recipe.apply(image)
    label: np.ndarray | None = None
    label_values: tuple[int, ...] = ()
    notes = (*image.notes, *prepared.notes)
    if case.label is not None:
        original = read_case_label(case.label, image, prepared.geometry, job.classes)
        label = job.recipe.apply_label(original.values, prepared.geometry)
        label_values = tuple(int(value) for value in np.unique(original.values))
        notes = (*notes, *original.notes)
    if states is None or file_states(case) != states:
        raise DataError(f"{image.name}: changed while it was read; run the same command again")
    stored = StoredCase(
        id=case.id,
        subject=case.subject,
        grade=case.grade,
        target=case.target,
        shape=prepared.data.shape[1:],
        spacing_mm=prepared.spacing_mm,
        affine=tuple(tuple(float(value) for value in row) for row in prepared.affine),
        geometry=prepared.geometry,
        has_label=label is not None,
        label_values=label_values,
        recipe_hash=job.recipe_hash,
        source_hash=source_hash,
        image_hash=combine_hashes(case, digests[: len(case.images)]),
        sources=states,
        sha256={},
        coarse_picture=coarse_picture(prepared.data),
        profile=measure_profile(image, prepared.data, prepared.geometry, case.modality),
        notes=notes,
    )
    return PreparedCase(store.write_case(job.store, stored, prepared, label), is_new=True)


def _stored_case(job: CaseJob, source_hash: str) -> StoredCase | None:
    """The case in the store, if it was made from the same contents and its arrays are intact."""
    stored = store.read_entry(job.store, job.case.id)
    if stored is None or stored.source_hash != source_hash or stored.profile is None:
        return None
    return stored if store.is_intact(job.store, stored) else None


def _files(case: Case) -> tuple[Path, ...]:
    return case.images if case.label is None else (*case.images, case.label)


def _file_hash(path: Path, case: Case) -> str:
    # the name of a DICOM file may be a patient's
    name = f"{case.id}: a slice" if case.stacked else ""
    total = hashlib.sha256()
    with open_regular(path, name) as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
