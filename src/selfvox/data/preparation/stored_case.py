"""A prepared case, as its JSON and the manifest of a store describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from selfvox.data import naming
from selfvox.data.preparation.geometry import Geometry
from selfvox.errors import DataError


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
    source_hash: str  # of recipe_hash and the contents of the source files, the label included
    image_hash: str  # of the contents of the image files alone, to find one scan under two names
    # of each source file: size in bytes and time of the last change in ns
    sources: tuple[tuple[int, int], ...]
    sha256: dict[str, str]  # images, labels, foreground -> digest of the array's file
    coarse_picture: str = ""  # see `likeness`
    notes: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label, or a grade."""
        return self.has_label or self.grade is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the file calls the geometry `trail`."""
        values = {}
        for name, value in dataclasses.asdict(self).items():
            if name == "geometry":
                values["trail"] = self.geometry.to_dict()
            else:
                values[name] = value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredCase:
        """The inverse of `to_dict`.

        Raises:
            DataError: an id that is not safe as a file name.
        """
        values = dict(values)
        # the id becomes a path; a manifest of others must not lead out of the store
        if naming.safe_name(str(values["id"])) != values["id"]:
            raise DataError(
                f"case id {values['id']!r} is not a safe file name; prepare the scans again"
            )
        # JSON has lists; a case that was read must equal the one that was written
        for name in ("shape", "spacing_mm", "label_values", "notes"):
            values[name] = tuple(values[name])
        for name in ("affine", "sources"):
            values[name] = tuple(tuple(row) for row in values[name])
        values["geometry"] = Geometry.from_dict(values.pop("trail"))
        return cls(**values)


def sort_cases(cases: Iterable[StoredCase]) -> list[StoredCase]:
    """Cases in the natural order of their ids: `scan_2` before `scan_10`."""
    return sorted(cases, key=lambda case: naming.natural_key(case.id))


def cases_by_subject(cases: Iterable[StoredCase]) -> dict[str, list[StoredCase]]:
    """The cases of each person, in their order."""
    listed: dict[str, list[StoredCase]] = {}
    for case in cases:
        listed.setdefault(case.subject, []).append(case)
    return listed


def subject_grades(cases: Iterable[StoredCase]) -> dict[str, int]:
    """The highest grade of each subject's cases; without the subjects that have none."""
    highest: dict[str, int] = {}
    for case in cases:
        if case.grade is not None:
            highest[case.subject] = max(case.grade, highest.get(case.subject, case.grade))
    return highest
