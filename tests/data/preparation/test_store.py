"""Stored cases are read back in part, mirrored at the edges; damage is reported."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.manifest import is_store, write_manifest
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.split import Split, write_split
from selfvox.data.preparation.store import (
    Store,
    is_intact,
    open_store,
    sample_labelled_voxels,
    write_case,
)
from selfvox.data.preparation.stored_case import StoredCase, subject_grades
from selfvox.errors import DataError
from selfvox.ops.mirrored_crop import mirrored_crop
from selfvox.runs import atomic_files

RECIPE = Recipe(spatial_dims=3, channel_names=("T1", "T2"), intensity=(Intensity(kind="mri"),) * 2)
CLASSES = {0: "background", 1: "organ", 7: "lesion"}


def a_store(
    path: Path, count: int = 2, shape: tuple[int, ...] = (9, 7, 5)
) -> tuple[Store, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 7], shape).astype(np.uint8)
    images = []
    cases = []
    for number in range(count):
        data = rng.normal(0, 1, (2, *shape)).astype(np.float32)
        geometry = Geometry(
            shape=shape,
            orientation=((0, 1), (1, 1), (2, 1)),
            start=(0, 0, 0),
            stop=shape,
            step=(1.0, 1.0, 1.0),
            prepared_shape=shape,
        )
        case = StoredCase(
            id=f"scan_{number}",
            subject=f"subject_{number}",
            shape=shape,
            spacing_mm=(1.0, 1.0, 2.0),
            affine=tuple(map(tuple, np.eye(4).tolist())),
            geometry=geometry,
            has_label=number == 0,
            label_values=(0, 1, 7) if number == 0 else (),
            grade=None,
            recipe_hash="",
            source_hash=f"{number}",
            image_hash=f"{number}",
            sources=((10, 20),),
            sha256={},
        )
        prepared = PreparedScan(data, (1.0, 1.0, 2.0), np.eye(4), geometry)
        cases.append(write_case(path, case, prepared, label if case.has_label else None))
        images.append(data.astype(np.float16).astype(np.float32))
    write_manifest(path, RECIPE, CLASSES, cases, {})
    return open_store(path), images, label


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store, images, label = a_store(tmp_path, count=11)
    assert [case.id for case in store.cases] == [
        f"scan_{number}" for number in range(11)
    ]  # 2 before 10
    assert store.recipe == RECIPE
    assert store.classes == CLASSES
    for case, image in zip(store.cases, images, strict=True):
        crop = store.crop(case, (0, 0, 0), case.shape)
        assert crop.dtype == np.float32
        np.testing.assert_array_equal(crop, image)
    np.testing.assert_array_equal(
        store.label_crop(store.cases[0], (1, 2, 3), (4, 4, 2)), label[1:5, 2:6, 3:5]
    )


def test_a_store_of_another_folder_does_not_read_the_arrays_of_the_first(tmp_path: Path) -> None:
    first, _, _ = a_store(tmp_path / "first")
    second, images, label = a_store(tmp_path / "second", shape=(5, 7, 9))
    case = second.cases[0]
    assert case.id == first.cases[0].id
    for read in (first.crop, first.label_crop):
        read(first.cases[0], (0, 0, 0), (2, 2, 2))
    moved = dataclasses.replace(first, path=second.path, cases=second.cases)
    np.testing.assert_array_equal(moved.crop(case, (0, 0, 0), case.shape), images[0])
    np.testing.assert_array_equal(moved.label_crop(case, (0, 0, 0), case.shape), label)


@pytest.mark.parametrize("seed", range(20))
def test_a_crop_is_a_slice_of_the_symmetric_padding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    array = rng.normal(size=(2, *rng.integers(1, 8, dims)))
    start = rng.integers(-25, 20, dims)
    size = rng.integers(1, 30, dims)
    padded = np.pad(array, [(0, 0)] + [(30, 60)] * dims, mode="symmetric")
    naive = padded[
        (slice(None), *(slice(a + 30, a + 30 + n) for a, n in zip(start, size, strict=True)))
    ]
    np.testing.assert_array_equal(mirrored_crop(array, start.tolist(), size.tolist()), naive)


def test_image_and_label_are_mirrored_alike(tmp_path: Path) -> None:
    store, images, label = a_store(tmp_path)
    position = ((-4, 3, -8), (16, 16, 16))
    for crop, array in (
        (store.crop(store.cases[0], *position)[0], images[0][0]),
        (store.label_crop(store.cases[0], *position), label),
    ):
        padded = np.pad(array, 20, mode="symmetric")
        np.testing.assert_array_equal(crop, padded[16:32, 23:39, 12:28])


def test_a_crop_is_a_copy_that_may_be_changed(tmp_path: Path) -> None:
    store, images, _ = a_store(tmp_path)
    store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))[:] = 99
    label = store.label_crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    label[:] = 99
    np.testing.assert_array_equal(store.crop(store.cases[0], (0, 0, 0), (9, 7, 5)), images[0])


def test_foreground_lists_voxels_of_every_class() -> None:
    label = np.zeros((40, 40, 40), np.uint16)
    label[3:30, 3:30, 3:30] = 1
    label[5, 6, 7] = 300
    places = sample_labelled_voxels(label)
    assert (places[:, 0] == 1).sum() == 1000
    assert (places[:, 0] == 300).sum() == 1
    np.testing.assert_array_equal(label[tuple(places[:, 1:].T)], places[:, 0])
    assert len(np.unique(places, axis=0)) == len(places)
    np.testing.assert_array_equal(places, sample_labelled_voxels(label))


def test_the_stored_foreground_lies_on_the_label(tmp_path: Path) -> None:
    store, _, label = a_store(tmp_path)
    places = store.foreground(store.cases[0])
    np.testing.assert_array_equal(label[tuple(places[:, 1:].T)], places[:, 0])
    assert set(places[:, 0]) == {1, 7}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.fault("F27", "arrays of a store cut, changed, missing", "named with the remedy")
@pytest.mark.parametrize(
    "damage", [_flip, lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.unlink()]
)
def test_damage_is_named_with_its_remedy(tmp_path: Path, damage: object) -> None:
    a_store(tmp_path)
    damage(tmp_path / "images" / "scan_1.npy")  # type: ignore[operator]
    store = open_store(tmp_path)
    store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    with pytest.raises(DataError, match=r"scan_1.*run `selfvox prepare SCANS --out .*` again"):
        store.crop(store.cases[1], (0, 0, 0), (2, 2, 2))


@pytest.mark.fault("X1", "a pickle in a .npy array of a store", "refused, nothing runs")
def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    """An array of objects is a pickle; even with a matching hash it is refused."""
    store, _, _ = a_store(tmp_path)
    file = tmp_path / "images" / "scan_0.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    case = dataclasses.replace(store.cases[0], sha256={"images": atomic_files.sha256(file)})
    with pytest.raises(DataError, match="scan_0 is damaged"):
        store.crop(case, (0, 0, 0), (2, 2, 2))


def with_array(folder: Path, content: bytes) -> tuple[Store, StoredCase]:
    """A store of which the first image is these bytes, with their checksum."""
    store, _, _ = a_store(folder)
    file = folder / "images" / "scan_0.npy"
    file.write_bytes(content)
    return store, dataclasses.replace(
        store.cases[0], sha256={**store.cases[0].sha256, "images": atomic_files.sha256(file)}
    )


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


SHAPE = (2, 9, 7, 5)
HOSTILE = {
    "empty": b"",
    "no array": b"text of some length, much longer than a magic number",
    "half": npy(np.zeros(SHAPE, np.float16))[:-1],
    "more": npy(np.zeros(SHAPE, np.float16)) + b"x",
    "other shape": npy(np.zeros((2, 9, 5, 7), np.float16)),
    "other channels": npy(np.zeros((1, 9, 7, 5), np.float16)),
    "fewer axes": npy(np.zeros((9, 7, 5), np.float16)),
    "no axes": npy(np.float16(0)),
    "other type": npy(np.zeros(SHAPE, np.float32)),
    "other byte order": npy(np.zeros(SHAPE, ">f2")),
    "records": npy(np.zeros(SHAPE, [("a", "<f2")])),
    "other order of axes": npy(np.asfortranarray(np.random.default_rng(0).random(SHAPE, "f"))),
    "version 3": npy(np.zeros(SHAPE, np.float16)).replace(b"NUMPY\x01", b"NUMPY\x03"),
    "negative edge": npy(np.zeros(SHAPE, np.float16)).replace(b"(2, 9, 7, 5)", b"(2, 9,-7,-5)"),
    "huge edge": npy(np.zeros(SHAPE, np.float16)).replace(
        b"(2, 9, 7, 5), }   ", b"(2, 9, 9**9, 5), }"
    ),
    "not closed": npy(np.zeros(SHAPE, np.float16)).replace(b"5), }", b"5,({[ "),
    "a number": npy(np.zeros(SHAPE, np.float16)).replace(b"{'descr'", b"0x{escr'"),
    "nested": npy(np.zeros(SHAPE, np.float16)).replace(b"{'descr': '<f2'", b"[[[[[[[[[[[[[[["),
}


@pytest.mark.fault("X1b", "hostile .npy headers with a right checksum", "refused as damaged")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_with_a_right_checksum_is_still_no_array_of_the_case(
    tmp_path: Path, what: str
) -> None:
    store, case = with_array(tmp_path, HOSTILE[what])
    with pytest.raises(DataError, match=r"scan_0 is damaged .*run `selfvox prepare"):
        store.crop(case, (0, 0, 0), (2, 2, 2))


@pytest.mark.fault("F21a", "NaN in an array of a store", "the case is named")
def test_a_value_that_is_not_finite_names_the_case(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.float16)
    values[0, 8, 6, 4] = np.nan
    store, case = with_array(tmp_path, npy(values))
    store.crop(case, (0, 0, 0), (2, 2, 2))
    with pytest.raises(DataError, match="scan_0 has values that are not finite"):
        store.crop(case, (7, 5, 3), (2, 2, 2))


@pytest.mark.fault("F26e", "an array truncated while it is mapped", "an error with the file")
def test_an_array_that_is_truncated_while_it_is_mapped_is_an_error(tmp_path: Path) -> None:
    """To read it would end the process by SIGBUS."""
    store, _, _ = a_store(tmp_path, shape=(40, 40, 40))
    store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    os.truncate(tmp_path / "images" / "scan_0.npy", 4096)
    with pytest.raises(DataError, match=r"scan_0 is damaged \(it was truncated\)"):
        store.crop(store.cases[0], (38, 38, 38), (2, 2, 2))


@pytest.mark.fault("K1 N38", "pipe, folder and link in place of an array", "refused as damaged")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_no_array(tmp_path: Path, make: Callable[[Path], None]) -> None:
    store, _, _ = a_store(tmp_path)
    file = tmp_path / "images" / "scan_0.npy"
    file.unlink()
    make(file)
    with pytest.raises(DataError, match="not a regular file"):
        store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    assert not is_intact(tmp_path, store.cases[0])


@pytest.mark.parametrize("is_copied", [False, True])
def test_arrays_are_hashed_once_where_their_times_are_not_those_of_the_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_copied: bool
) -> None:
    store, _, _ = a_store(tmp_path, count=5)
    monkeypatch.setattr("selfvox.data.preparation.store._MOST_OPEN", 2)
    for file in (tmp_path / "images").iterdir() if is_copied else ():
        os.utime(file)
    checked = []
    real = hashlib.file_digest

    def counted(file: BinaryIO, algorithm: str) -> Any:
        checked.append(file)
        return real(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        for case in store.cases:
            store.crop(case, (0, 0, 0), (2, 2, 2))
    assert len(checked) == (5 if is_copied else 0)
    assert len(store._open) == 2


def test_an_array_that_another_process_replaced_is_checked_when_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is prepared again while a run trains never mixes old and new scans."""
    store, images, _ = a_store(tmp_path, count=3)
    monkeypatch.setattr("selfvox.data.preparation.store._MOST_OPEN", 1)
    for case in store.cases:
        store.crop(case, (0, 0, 0), (2, 2, 2))
    with atomic_files.atomic_write(tmp_path / "images" / "scan_0.npy") as temporary:
        np.save(temporary, np.zeros_like(images[0], dtype=np.float16))
    with pytest.raises(DataError, match=r"scan_0 is damaged \(its SHA-256 differs\)"):
        store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"of other cases"])
def test_without_the_times_of_the_preparation_arrays_are_hashed(
    tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_store(tmp_path)
    stamps = tmp_path / "stamps.npy"
    stamps.unlink()
    if content == b"of other cases":
        np.save(stamps, np.ones((3, 3, 2), np.int64))
    elif content is not None:
        stamps.write_bytes(content)
    store = open_store(tmp_path)
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda *arguments: hashed.append(1) or real(*arguments)
    )
    store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    assert hashed == [1]


def test_a_store_travels_to_a_worker_without_its_arrays(tmp_path: Path) -> None:
    store, images, _ = a_store(tmp_path, shape=(40, 40, 40))
    store.crop(store.cases[0], (0, 0, 0), (2, 2, 2))
    packed = pickle.dumps(store)
    assert len(packed) < 5000
    received = pickle.loads(packed)
    assert received == store
    crop = received.crop(received.cases[1], (0, 0, 0), (40, 40, 40))
    np.testing.assert_array_equal(crop, images[1])


@pytest.mark.fault("F27m", "a manifest with other shapes and keys", "refused with the key")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"format": "other"}, "not the manifest of a store"),
        ({"cases": None}, "unfinished"),
        ({"cases": [{"id": "a"}]}, "damaged"),
        ({"cases": "all"}, "damaged"),
        ({"cases": [[]]}, "damaged"),
        ({"recipe": {}}, "damaged"),
        ({"recipe": None}, "damaged"),
        ({"classes": {"one": "organ"}}, "damaged"),
        ({"asked": []}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], message: str, change_json: Callable[..., None]
) -> None:
    a_store(tmp_path)
    change_json(tmp_path / "manifest.json", **change)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path)


@pytest.mark.fault("F27m F11-card", "every byte of a manifest changed", "noticed")
def test_every_other_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    a_store(tmp_path)
    manifest = tmp_path / "manifest.json"
    written = manifest.read_bytes()
    whole = open_store(tmp_path)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(written), 100, replace=False):
        damaged = bytearray(written)
        damaged[position] ^= 1 << int(rng.integers(8))
        manifest.write_bytes(damaged)
        try:
            opened = open_store(tmp_path)
        except DataError:
            continue
        # a space for a line break
        assert opened == whole


def test_a_manifest_of_more_cases_than_a_list_of_scans_may_have_is_read(tmp_path: Path) -> None:
    """The limit of 16 MiB for lists would allow only 16 000 scans, or 1200 series of 400 slices."""
    store, _, _ = a_store(tmp_path)
    cases = [dataclasses.replace(case, notes=("x" * 10 * 2**20,)) for case in store.cases]
    write_manifest(tmp_path, RECIPE, CLASSES, cases, {})
    assert list(open_store(tmp_path).cases) == cases


def test_other_folders_are_not_stores(tmp_path: Path) -> None:
    assert not is_store(tmp_path)
    with pytest.raises(DataError, match="not a store; make one with"):
        open_store(tmp_path)


def test_the_record_of_the_data_changes_with_the_contents(tmp_path: Path) -> None:
    store, _, _ = a_store(tmp_path)
    record = store.record(store.cases)
    assert record == store.record(store.cases[::-1])
    assert record["cases"] == 2
    assert record["sha256"] != store.record(store.cases[:1])["sha256"]


def test_only_cases_of_test_subjects_are_left_out(tmp_path: Path) -> None:
    store, _, _ = a_store(tmp_path, count=4)
    assert list(store.without_test_subjects()) == list(store.cases)
    subjects = [case.subject for case in store.cases]
    fixed = Split(train=(subjects[0],), validation=(subjects[1],), test=(subjects[2],), seed=0)
    write_split(fixed, tmp_path / "split.json")
    remaining = [case.subject for case in store.without_test_subjects()]
    assert remaining == [subjects[0], subjects[1], subjects[3]]


def test_values_beyond_float16_are_stored_as_its_largest(tmp_path: Path) -> None:
    store, _, _ = a_store(tmp_path, count=1)
    case = store.cases[0]
    data = np.zeros((2, *case.shape), np.float32)
    data[0, 0, 0, 0] = 1e6
    data[1, 0, 0, 0] = -1e6
    prepared = PreparedScan(data, case.spacing_mm, np.eye(4), case.geometry)
    case = write_case(tmp_path, case, prepared, None)
    crop = dataclasses.replace(store).crop(case, (0, 0, 0), (1, 1, 1))
    assert crop.ravel().tolist() == [65504, -65504]


def test_a_subject_has_the_highest_grade_of_its_cases(tmp_path: Path) -> None:
    store, _, _ = a_store(tmp_path, count=5)
    grades = [("ann", 1), ("ann", 3), ("ann", 2), ("bob", None), ("cid", 0)]
    cases = [
        dataclasses.replace(case, subject=subject, grade=grade)
        for case, (subject, grade) in zip(store.cases, grades, strict=True)
    ]
    assert subject_grades(cases) == {"ann": 3, "cid": 0}
