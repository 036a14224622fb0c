"""Everything that the checks look at in one scan: the work of one worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selfvox.data.checks.scan_facts import ScanFacts
from selfvox.data.checks.scan_views import draw_views
from selfvox.data.formats.header_texts import personal_fields
from selfvox.data.formats.image import Image
from selfvox.data.preparation.case_label import CaseLabel, read_case_label
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.likeness import coarse_picture
from selfvox.data.preparation.prepare_case import Rejected, image_hash, make_rejected, read_case
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.store import image_digest
from selfvox.data.sources import Case
from selfvox.errors import DataError


@dataclass(frozen=True)
class InspectJob:
    """A case to inspect."""

    case: Case
    recipe: Recipe
    classes: tuple[int, ...] | None  # values that a label may have; None: any
    with_views: bool


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A scan that can be read, with all that was seen in it."""

    facts: ScanFacts
    label_voxels: Mapping[int, int]  # by value
    label_error: str | None  # why the label cannot be used
    personal: tuple[str, ...]  # fields of the headers that may name a person
    views: np.ndarray | None  # uint8 (row, column, 3)


def inspect_case(job: InspectJob) -> Inspection | Rejected:
    """Look at one case; nothing is written."""
    try:
        return _inspect(job)
    except MemoryError:
        return make_rejected(job.case, "needs more memory than there is; use fewer --workers")
    except DataError as error:
        return make_rejected(job.case, str(error))
    # an unforeseen error in one file must not end the work on the others
    except Exception as error:
        return make_rejected(job.case, f"cannot be read ({type(error).__name__}: {error})")


def _inspect(job: InspectJob) -> Inspection:
    case = job.case
    image = read_case(case, len(job.recipe.channel_names))
    prepared = job.recipe.apply(image)
    label, label_error = _read_label(job, image, prepared.geometry)
    voxels = None if label is None else label.values
    values, counts = np.unique(() if voxels is None else voxels, return_counts=True)
    facts = ScanFacts(
        id=case.id,
        subject=case.subject,
        geometry=prepared.geometry,
        profile=measure_profile(image, prepared.data, prepared.geometry, case.modality),
        file_hash=image_hash(case),
        voxel_hash=image_digest(prepared),
        coarse_picture=coarse_picture(prepared.data),
        has_label=label is not None,
        label_values=tuple(int(value) for value in values),
        notes=(*image.notes, *prepared.notes, *(label.notes if label else ())),
    )
    # the files of a series have the same texts
    files = case.images[:1] if case.stacked else case.images
    fields = {field for path in files for field in personal_fields(path, case.stacked)}
    return Inspection(
        facts=facts,
        label_voxels={int(value): int(count) for value, count in zip(values, counts, strict=True)},
        label_error=label_error,
        personal=tuple(sorted(fields)),
        views=draw_views(image, prepared.geometry, voxels) if job.with_views else None,
    )


def _read_label(
    job: InspectJob, image: Image, geometry: Geometry
) -> tuple[CaseLabel | None, str | None]:
    """The label if there is one, or why it cannot be used."""
    if job.case.label is None:
        return None, None
    try:
        return read_case_label(job.case.label, image, geometry, job.classes), None
    except DataError as error:
        return None, str(error)
