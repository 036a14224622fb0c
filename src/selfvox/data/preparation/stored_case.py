"""A prepared case, as its JSON describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field

from selfvox.data import naming
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.scan_profile import ScanProfile
from selfvox.errors import DataError
from selfvox.runs.typed_json import parse

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One prepared case."""

    id: str
    subject: str
    shape: tuple[int, ...]  # of the prepared array, without its channels
    spacing_mm: tuple[Annotated[float, Field(gt=0, le=1e6)], ...]
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
    # likewise: size in bytes and time of the last change in ns, when the digest was computed
    stamps: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict, compare=False)
    coarse_picture: str = ""  # see `likeness`
    notes: tuple[str, ...] = ()
    profile: ScanProfile | None = None  # None: prepared before profiles were measured
    target: float | None = None  # a number to predict, such as an age

    def check(self) -> None:
        """Refuse values that do not belong together.

        Raises:
            ValueError: names the first of them.
        """
        self.geometry.check()
        # the id becomes a path; a manifest of others must not lead out of the store
        if not naming.is_safe_name(self.id):
            raise ValueError(f"{self.id!r} is not a safe file name")
        if self.shape != self.geometry.prepared_shape or len(self.spacing_mm) != len(self.shape):
            raise ValueError("'shape' is not that of its geometry")
        if [len(row) for row in self.affine] != [4, 4, 4, 4]:
            raise ValueError("'affine' is not of 4 x 4 numbers")

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label, a grade or a target."""
        return self.has_label or self.grade is not None or self.target is not None

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
            DataError: these are not the values of a case.
        """
        renamed = {("geometry" if key == "trail" else key): values[key] for key in values}
        if isinstance(renamed.get("geometry"), Mapping):
            renamed["geometry"] = Geometry.by_field(renamed["geometry"])
        case: StoredCase = parse(cls, renamed, "case")
        try:
            case.check()
        except ValueError as error:
            raise DataError(f"case {naming.printable(case.id)}: damaged ({error})") from None
        return case


def sort_cases(cases: Iterable[StoredCase]) -> list[StoredCase]:
    """Cases in the natural order of their ids: `scan_2` before `scan_10`."""
    return sorted(cases, key=lambda case: naming.natural_key(case.id))


def in_plane_case(case: StoredCase, axis: int) -> StoredCase:
    """The case with shape, spacing and step of its slices, which have no such axis."""

    def without(values: tuple[T, ...]) -> tuple[T, ...]:
        return (*values[:axis], *values[axis + 1 :])

    return dataclasses.replace(
        case,
        shape=without(case.shape),
        spacing_mm=without(case.spacing_mm),
        geometry=dataclasses.replace(case.geometry, step=without(case.geometry.step)),
    )


def subject_grades(cases: Iterable[StoredCase]) -> dict[str, int]:
    """The highest grade of each subject's cases; without the subjects that have none."""
    highest: dict[str, int] = {}
    for case in cases:
        if case.grade is not None:
            highest[case.subject] = max(case.grade, highest.get(case.subject, case.grade))
    return highest
