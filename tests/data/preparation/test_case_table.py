"""The table of a store's cases says what their objects say, and refuses what was not written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from selfvox.data.preparation.case_columns import FILE
from selfvox.data.preparation.case_table import (
    CaseTable,
    cases_of_subjects,
    numbers,
    subject_numbers,
    subjects_of,
    texts,
)
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.leakage import content_hashes, seen_scans
from selfvox.data.preparation.manifest import write_manifest
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import ChannelProfile, ScanProfile
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase, in_plane_case
from selfvox.errors import DataError
from selfvox.runs import atomic_files
from selfvox.runs.typed_json import read_checked, write_checked

RECIPE = Recipe(spatial_dims=3, channel_names=("T1", "T2"), intensity=(Intensity(kind="mri"),) * 2)


def unlike_cases(count: int = 12) -> list[StoredCase]:
    """Cases that differ in every field, in the order of a table."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        shape = (9, 7, 5 + number)
        channel = ChannelProfile(
            before=tuple(rng.random(5)), after=(0.0,) * 6, share=0.5, detail=(0.1, 0.2, 0.3)
        )
        profile = ScanProfile(
            spacing_mm=(1.0, 2.0, 3.0),
            extent=tuple(rng.random(3)),
            channels=(channel,) * 2,
            modality="MR" if number % 2 else None,
        )
        geometry = Geometry(
            shape=(10, 20, 30),
            orientation=((2, -1), (0, 1), (1, 1)),
            start=(number, 0, 0),
            stop=(20, 30, 10),
            step=tuple(rng.uniform(0.5, 2, 3)),
            prepared_shape=shape,
        )
        labelled = {"labels": f"l{number}", "foreground": f"f{number}"} if number % 2 else {}
        cases.append(
            StoredCase(
                id=f"scan_{number}",
                subject=["zoë", "ann", "bob", "ann"][number % 4],
                shape=shape,
                spacing_mm=tuple(rng.uniform(0.5, 3, 3)),
                affine=tuple(map(tuple, rng.normal(size=(4, 4)).tolist())),
                geometry=geometry,
                has_label=number % 2 == 1,
                label_values=tuple(range(number)),
                grade=None if number % 3 else number - 6,
                recipe_hash=f"recipe {number % 2}",
                source_hash=f"s{number}",
                image_hash=f"ä{number}",
                sources=((number, 2**60 + number),) * (1 + number % 3),
                sha256={"images": f"i{number}", **labelled},
                stamps={kind: (number, 2**60 + number) for kind in ("images", *labelled)},
                coarse_picture="" if number == 5 else "QUJD" * number,
                notes=("a “note”",) * (number % 2),
                profile=None if number == 7 else profile,
            )
        )
    return cases


def written(folder: Path, count: int = 12) -> tuple[Store, list[StoredCase]]:
    """A store of such cases, without arrays."""
    (folder / "cases").mkdir()
    cases = unlike_cases(count)
    write_manifest(folder, RECIPE, None, cases[::-1], {})
    return open_store(folder), cases


def test_each_row_is_the_case_that_was_written(tmp_path: Path) -> None:
    store, cases = written(tmp_path)
    assert list(store.cases) == cases
    assert [case.stamps for case in store.cases] == [case.stamps for case in cases]
    assert all(case.stamps for case in cases)
    assert store.cases[-1] == cases[-1]
    assert list(store.cases[2:9:3]) == cases[2:9:3]
    with pytest.raises(IndexError):
        store.cases[len(cases)]


def test_columns_are_the_values_of_the_cases(tmp_path: Path) -> None:
    store, cases = written(tmp_path)
    assert isinstance(store.cases, CaseTable)
    places = np.array([7, 0, 3])
    selected = store.cases.select(places)
    for table, objects in (
        (store.cases, cases),
        (selected, [cases[place] for place in places]),
        (selected.select(np.array([True, False, True])), [cases[7], cases[3]]),
        (store.cases.in_plane(1)[3:], [in_plane_case(case, 1) for case in cases[3:]]),
    ):
        assert list(table) == objects
        assert numbers(table, "shape").tolist() == [list(case.shape) for case in objects]
        np.testing.assert_array_equal(
            numbers(table, "spacing_mm"), [case.spacing_mm for case in objects]
        )
        np.testing.assert_array_equal(
            numbers(table, "step"), [case.geometry.step for case in objects]
        )
        # of a list of objects the same
        for name in ("shape", "step", "grade", "has_label"):
            np.testing.assert_array_equal(numbers(table, name), numbers(objects, name))
        for name in ("id", "image_hash", "array_hash", "coarse_picture"):
            assert texts(table, name) == texts(objects, name)
        assert subjects_of(table) == [case.subject for case in objects]
        first_seen = list(dict.fromkeys(subjects_of(objects)))
        expected = [first_seen.index(case.subject) for case in objects]
        assert subject_numbers(table).tolist() == subject_numbers(objects).tolist() == expected
        for others in (False, True):
            chosen = cases_of_subjects(table, {"ann", "nobody"}, others=others)
            assert list(chosen) == [case for case in objects if (case.subject == "ann") != others]


def test_what_was_seen_is_that_of_the_cases(tmp_path: Path) -> None:
    store, cases = written(tmp_path)
    seen = seen_scans(store.cases)
    assert seen["subjects"] == ["ann", "bob", "zoë"]
    assert seen["image_hashes"] == sorted(set().union(*map(content_hashes, cases)))
    assert seen["coarse_pictures"] == sorted({case.coarse_picture for case in cases} - {""})


def test_a_table_travels_as_the_path_of_its_file(tmp_path: Path) -> None:
    store, cases = written(tmp_path)
    some = store.cases[3:8]
    packed = pickle.dumps(some)
    assert len(packed) < 1000
    assert list(pickle.loads(packed)) == cases[3:8]
    write_manifest(tmp_path, RECIPE, None, cases[:9], {})
    with pytest.raises(DataError, match="was written again since it was opened"):
        pickle.loads(packed)
    # what is mapped stays as it was
    assert list(some) == cases[3:8]


@pytest.mark.fault("F27m F11-card", "any byte of the table of cases changed", "noticed")
def test_every_changed_byte_of_the_table_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, 2)
    file = tmp_path / FILE
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), 30, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cases.safetensors: damaged .* `selfvox prepare` aga"):
            open_store(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"cases\.safetensors"):
        open_store(tmp_path)


def rewrite_table(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace or drop columns, with the right checksum."""
    columns = safetensors.numpy.load((folder / FILE).read_bytes()) | changes
    kept = {name: column for name, column in columns.items() if column is not None}
    (folder / FILE).write_bytes(safetensors.numpy.save(kept))
    with_digest(folder)


def with_digest(folder: Path) -> None:
    manifest = read_checked(folder / "manifest.json")
    manifest["cases"]["sha256"] = atomic_files.sha256(folder / FILE)
    write_checked(folder / "manifest.json", manifest)


HOSTILE = {
    "no column": {"shape": None},
    "other type": {"shape": np.ones((2, 3), np.int64)},
    "fewer axes": {"shape": np.ones((2, 2), np.int32)},
    "more cases": {"has_label": np.ones(3, bool)},
    "no voxel": {"shape": np.zeros((2, 3), np.int32)},
    "no spacing": {"spacing_mm": np.full((2, 3), np.nan)},
    "nobody": {"subject": np.array([0, 2], np.int32)},
    "minus one": {"subject": np.array([0, -1], np.int32)},
    "starts that fall": {"id.starts": np.array([0, 13, 12])},
    "starts outside": {"id.starts": np.array([0, 6, 2**62])},
    "negative starts": {"id.starts": np.array([-6, 0, 12])},
    "few starts": {"id.starts": np.array([0, 12])},
    "texts of numbers": {"id.text": np.zeros(12, np.int32)},
}


@pytest.mark.fault("X1c", "a hostile table of cases with a right checksum", "refused as damaged")
@pytest.mark.parametrize("what", HOSTILE)
def test_columns_that_are_not_of_the_cases_are_refused(tmp_path: Path, what: str) -> None:
    written(tmp_path, 2)
    rewrite_table(tmp_path, **HOSTILE[what])
    with pytest.raises(DataError, match=r"cases\.safetensors: damaged \("):
        open_store(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    written(tmp_path, 2)
    (tmp_path / FILE).write_bytes(content)
    with_digest(tmp_path)
    with pytest.raises(DataError, match=r"cases\.safetensors: damaged \("):
        open_store(tmp_path)


REST = {
    "affine": ([[1.0]], "not of 4 x 4 numbers"),
    "sources": ([[1]], "sources.0"),
    "trail": (None, "trail"),
    "label_values": (["1"], "label_values.0"),
    "sha256": ({"images": 1}, "sha256.images"),
}


@pytest.mark.parametrize("name", [*REST, "id", "json"])
def test_a_row_that_was_not_prepared_so_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, 2)
    columns = safetensors.numpy.load((tmp_path / FILE).read_bytes())
    starts = columns["rest.starts"]
    first = bytes(columns["rest.text"][: starts[1]])
    reason = "Invalid JSON" if name == "json" else "not a safe file name"
    if name in REST:
        value, reason = REST[name]
        new = json.dumps(json.loads(first) | {name: value}).encode()
    else:
        new = first[:-1] + b" " if name == "json" else first
    texts = np.frombuffer(new + bytes(columns["rest.text"][starts[1] :]), np.uint8)
    moved = np.where(starts > 0, starts + len(new) - len(first), 0)
    changes = {"rest.text": texts, "rest.starts": moved}
    if name == "id":
        changes = {"id.text": np.frombuffer(b"../abcscan_1", np.uint8)}
    rewrite_table(tmp_path, **changes)
    store = open_store(tmp_path)
    assert store.cases[1].id == "scan_1"
    with pytest.raises(DataError, match=rf"row 0 is damaged .*{reason}.*`selfvox prepare` again"):
        store.cases[0]
