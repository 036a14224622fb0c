"""The cases of a store as a sequence: each is made from its row when it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from selfvox.data.preparation.case_columns import (
    BY_AXIS,
    KINDS,
    NO_GRADE,
    NUMBERS,
    REST,
    SUBJECTS,
    TEXTS,
    CaseColumns,
)
from selfvox.data.preparation.geometry import Edge, Geometry, Orientation
from selfvox.data.preparation.scan_profile import ScanProfile
from selfvox.data.preparation.stored_case import StoredCase, in_plane_case
from selfvox.errors import DataError
from selfvox.runs.typed_json import parse_text


class CaseTable(Sequence[StoredCase]):
    """Cases by columns, or some of them.

    Args:
        columns: of all cases of a store.
        rows: those of this table; None: all.
        axis: that the slices are perpendicular to, of which the cases are; None: of volumes or
            pictures.
    """

    def __init__(
        self, columns: CaseColumns, rows: np.ndarray | None = None, axis: int | None = None
    ):
        self.columns = columns
        self._rows = rows
        self._axis = axis

    def __len__(self) -> int:
        return len(self.columns) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> StoredCase: ...
    @overload
    def __getitem__(self, place: slice) -> CaseTable: ...
    def __getitem__(self, place: int | slice) -> StoredCase | CaseTable:
        """A case, made at each call; or a table of several, which shares the columns.

        Raises:
            DataError: the row is damaged.
        """
        rows = range(len(self)) if self._rows is None else self._rows
        if isinstance(place, slice):
            return self._with_rows(np.asarray(rows[place]))
        row = int(rows[place])
        try:
            case = _make_case(self.columns, row)
        except (DataError, ValueError) as error:
            raise DataError(
                f"{self.columns.file}: row {row} is damaged ({error}); run the same `selfvox "
                "prepare` again"
            ) from None
        return case if self._axis is None else in_plane_case(case, self._axis)

    def __iter__(self) -> Iterator[StoredCase]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CaseTable):
            return NotImplemented
        return len(self) == len(other) and all(map(StoredCase.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def select(self, chosen: np.ndarray) -> CaseTable:
        """The cases at these places (m,), or where a mask (n,) is true."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return self._with_rows(places if self._rows is None else self._rows[places])

    def in_plane(self, axis: int) -> CaseTable:
        """The same cases with shape, spacing and step of their slices."""
        return CaseTable(self.columns, self._rows, axis)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers (n, ...)."""
        values = self.columns.numbers[name]
        if self._rows is not None:
            values = values[self._rows]
        if self._axis is not None and name in BY_AXIS:
            values = np.delete(values, self._axis, axis=1)
        return values

    def texts(self, name: str) -> list[str]:
        """A column of texts."""
        column = self.columns.texts[name].to_list()
        return column if self._rows is None else [column[row] for row in self._rows.tolist()]

    def _with_rows(self, rows: np.ndarray) -> CaseTable:
        # half the memory of numpy's own integers
        return CaseTable(self.columns, rows.astype(np.int32), self._axis)


def numbers(cases: Sequence[StoredCase], name: str) -> np.ndarray:
    """One kind of numbers of all cases (n, ...): a key of `NUMBERS`."""
    if isinstance(cases, CaseTable):
        return cases.numbers(name)
    kind, value = NUMBERS[name]
    return np.array([value(case) for case in cases], dtype=kind)


def texts(cases: Sequence[StoredCase], name: str) -> list[str]:
    """One kind of texts of all cases: a key of `TEXTS`."""
    if isinstance(cases, CaseTable):
        return cases.texts(name)
    return [TEXTS[name](case) for case in cases]


def subjects_of(cases: Sequence[StoredCase]) -> list[str]:
    """The person of each case."""
    if isinstance(cases, CaseTable):
        people = cases.columns.texts[SUBJECTS].to_list()
        return [people[number] for number in cases.numbers("subject").tolist()]
    return [case.subject for case in cases]


def cases_of_subjects(
    cases: Sequence[StoredCase], subjects: Iterable[str], *, others: bool = False
) -> Sequence[StoredCase]:
    """The cases of these people; with `others` the cases of all other people."""
    chosen = frozenset(subjects)
    if not isinstance(cases, CaseTable):
        return [case for case in cases if (case.subject in chosen) != others]
    people = cases.columns.texts[SUBJECTS].to_list()
    are_chosen = np.array([(name in chosen) != others for name in people])
    return cases.select(are_chosen[cases.numbers("subject")])


def subject_numbers(cases: Sequence[StoredCase]) -> np.ndarray:
    """The number of each case's person, int32 (n,), counted in the order in which they occur."""
    names: Any = subjects_of(cases)
    if isinstance(cases, CaseTable):
        names = cases.numbers("subject")
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    in_order: np.ndarray = rank[inverse]
    return in_order


@dataclass(frozen=True)
class _Trail:
    """What a geometry has in no column."""

    shape: tuple[Edge, ...]
    orientation: Orientation
    start: tuple[int, ...]
    stop: tuple[int, ...]


@dataclass(frozen=True)
class _Rest:
    """What a case has in no column."""

    affine: tuple[tuple[float, ...], ...]
    trail: _Trail
    label_values: tuple[int, ...]
    recipe_hash: str
    sources: tuple[tuple[int, int], ...]
    sha256: dict[str, str]
    notes: tuple[str, ...]
    profile: ScanProfile | None
    target: float | None = None  # of stores of earlier versions


def _make_case(columns: CaseColumns, row: int) -> StoredCase:
    """The case in a row."""
    column = columns.numbers
    rest: _Rest = parse_text(_Rest, columns.texts[REST][row], REST)
    text: dict[str, Any] = {name: columns.texts[name][row] for name in TEXTS}
    array_hash = text.pop("array_hash")
    shape = tuple(column["shape"][row].tolist())
    grade = int(column["grade"][row])
    case = StoredCase(
        **text,
        subject=columns.texts[SUBJECTS][int(column["subject"][row])],
        shape=shape,
        spacing_mm=tuple(column["spacing_mm"][row].tolist()),
        affine=rest.affine,
        geometry=Geometry(
            shape=rest.trail.shape,
            orientation=rest.trail.orientation,
            start=rest.trail.start,
            stop=rest.trail.stop,
            step=tuple(column["step"][row].tolist()),
            prepared_shape=shape,
        ),
        has_label=bool(column["has_label"][row]),
        label_values=rest.label_values,
        grade=None if grade == NO_GRADE else grade,
        recipe_hash=rest.recipe_hash,
        sources=rest.sources,
        sha256=({"images": array_hash} if array_hash else {}) | rest.sha256,
        stamps=_stamps(columns, row),
        notes=rest.notes,
        profile=rest.profile,
        target=rest.target,
    )
    case.check()
    return case


def _stamps(columns: CaseColumns, row: int) -> dict[str, tuple[int, int]]:
    if columns.stamps is None:
        return {}
    pairs = zip(KINDS, columns.stamps[row].tolist(), strict=True)
    return {kind: (size, time) for kind, (size, time) in pairs if size >= 0}
