"""A data set becomes a store: only changes are prepared, bad scans named, killed runs resumed."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import multiprocessing
import operator
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data.formats.image import Image, read_image, read_label
from selfvox.data.preparation import fit_recipe, parallel, split
from selfvox.data.preparation import store as stores
from selfvox.data.preparation.normalise import foreground
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.recipe import PreparedScan, Recipe
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, ResourceError, UsageError
from selfvox.runs import atomic_files
from selfvox.settings.verbs import PreparationSettings

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the scans of {name} are not on this machine")
    return REAL / name


def scan(path: Path, seed: int = 0, shape: tuple[int, ...] = (14, 12, 10), low: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.full(shape, low, dtype=np.float32)
    data[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).uniform(
        100, 200, [extent - 4 for extent in shape]
    )
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), path)


def mask(
    path: Path, values: tuple[int, ...] = (1, 2), shape: tuple[int, ...] = (14, 12, 10)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(shape, dtype=np.uint8)
    for value in values:
        data[4 + value, 4:8, 4:6] = value
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(5):
        scan(tmp_path / "scans" / f"s{number}.nii.gz", number)
    return tmp_path / "scans"


def times(store: Path) -> dict[str, int]:
    return {file.stem: file.stat().st_mtime_ns for file in (store / "images").glob("*.npy")}


def rewritten(earlier: dict[str, int], store: Path) -> set[str]:
    """The cases with an array of another time."""
    return {name for name, time_ns in times(store).items() if earlier.get(name) != time_ns}


def test_a_folder_of_scans_becomes_a_store(scans: Path, tmp_path: Path) -> None:
    assert selfvox.prepare(scans, out=tmp_path / "store") == tmp_path / "store"
    store = open_store(tmp_path / "store")
    assert [case.id for case in store.cases] == ["s0", "s1", "s2", "s3", "s4"]
    for case in store.cases:
        image = read_image(scans / f"{case.id}.nii.gz")
        inside = foreground(image.data[0])
        raw = image.data[0][1:-1, 1:-1, 1:-1]
        expected = (raw - image.data[0][inside].mean()) / image.data[0][inside].std()
        np.testing.assert_allclose(store.crop(case, (0, 0, 0), case.shape)[0], expected, atol=2e-3)
        assert case.spacing_mm == (1, 1, 2)


def test_only_what_changed_is_prepared_again(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store)
    earlier = times(store)
    manifest = (store / "manifest.json").stat().st_mtime_ns

    selfvox.prepare(scans, out=store)
    assert rewritten(earlier, store) == set()
    assert (store / "manifest.json").stat().st_mtime_ns == manifest

    scan(scans / "s1.nii.gz", seed=77)  # new content
    (scans / "s2.nii.gz").touch()  # new time, same content
    scan(scans / "s9.nii.gz", seed=9)  # new scan
    (scans / "s3.nii.gz").unlink()
    capsys.readouterr()
    selfvox.prepare(scans, out=store)
    assert rewritten(earlier, store) == {"s1", "s9"}
    assert "2 prepared now, 3 unchanged" in capsys.readouterr().err
    assert [case.id for case in open_store(store).cases] == ["s0", "s1", "s2", "s4", "s9"]
    assert not list(store.glob("*/s3.*"))

    earlier = times(store)
    selfvox.prepare(scans, out=store, size=(8, 8, 8))
    assert rewritten(earlier, store) == {"s0", "s1", "s2", "s4", "s9"}
    assert {case.shape for case in open_store(store).cases} == {(8, 8, 8)}


def test_the_store_does_not_depend_on_the_workers(scans: Path, tmp_path: Path) -> None:
    for number in range(5, 9):
        scan(scans / f"s{number}.nii.gz", number)
    selfvox.prepare(scans, out=tmp_path / "one", workers=1, intensity="ct")
    selfvox.prepare(scans, out=tmp_path / "two", workers=2, intensity="ct")
    first = open_store(tmp_path / "one")
    second = open_store(tmp_path / "two")
    assert first.cases == second.cases
    assert first.recipe == second.recipe
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (
        tmp_path / "two" / "manifest.json"
    ).read_bytes()


@pytest.mark.fault("F14", "unreadable scans among others", "named, the others are prepared")
def test_bad_scans_are_named_and_the_others_are_prepared(scans: Path, tmp_path: Path) -> None:
    complete = (scans / "s1.nii.gz").read_bytes()
    (scans / "s1.nii.gz").write_bytes(complete[: len(complete) // 2])
    (scans / "=1+1.nii.gz").write_bytes(b"no scan")
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 7, np.int16), np.eye(4)), scans / "flat.nii.gz")
    selfvox.prepare(scans, out=tmp_path / "store")
    assert [case.id for case in open_store(tmp_path / "store").cases] == ["s0", "s2", "s3", "s4"]
    with (tmp_path / "store" / "rejected.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"'=1+1", "flat", "s1"}
    assert rows["'=1+1"]["file"].startswith("'=")  # no formula for a spreadsheet
    assert "same value everywhere" in rows["flat"]["reason"]

    scan(scans / "s1.nii.gz", 1)  # repaired
    (scans / "=1+1.nii.gz").unlink()
    (scans / "flat.nii.gz").unlink()
    selfvox.prepare(scans, out=tmp_path / "store")
    assert len(open_store(tmp_path / "store").cases) == 5
    assert not (tmp_path / "store" / "rejected.csv").exists()


def test_a_scan_that_turns_bad_leaves_the_store(scans: Path, tmp_path: Path) -> None:
    selfvox.prepare(scans, out=tmp_path / "store")
    (scans / "s1.nii.gz").write_bytes(b"broken")
    selfvox.prepare(scans, out=tmp_path / "store")
    assert "s1" not in [case.id for case in open_store(tmp_path / "store").cases]
    assert not list((tmp_path / "store").glob("*/s1.*"))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match=r"not one of 1 scans can be used; the first: a.nii.gz"):
        selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"none either")
    with pytest.raises(
        DataError,
        match=r"not one of 2 scans can be used \(all in .*rejected.csv\); the first: a.nii.gz",
    ):
        selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    with (tmp_path / "store" / "rejected.csv").open(newline="") as file:
        assert [(row["id"], bool(row["reason"])) for row in csv.DictReader(file)] == [
            ("a", True),
            ("b", True),
        ]
    scan(tmp_path / "scans" / "a.nii.gz")  # repaired
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    assert [case.id for case in open_store(tmp_path / "store").cases] == ["a"]


def labelled(
    root: Path, values: Callable[[int], tuple[int, ...]] = lambda number: (1, 2), count: int = 4
) -> Path:
    for number in range(count):
        scan(root / "imagesTr" / f"s{number}.nii.gz", number)
        mask(root / "labelsTr" / f"s{number}.nii.gz", values(number))
    table = {
        "name": "x",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [
            {"image": f"./imagesTr/s{number}.nii.gz", "label": f"./labelsTr/s{number}.nii.gz"}
            for number in range(count)
        ],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(table))
    return root


def test_labels_are_kept_and_undeclared_values_refused(tmp_path: Path) -> None:
    scans = labelled(tmp_path / "scans", lambda number: (1, 2) if number else (1, 5))
    selfvox.prepare(scans, out=tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [case.id for case in store.cases] == ["s1", "s2", "s3"]
    assert "unexpected label values 5" in (tmp_path / "store" / "rejected.csv").read_text()
    assert store.classes == {0: "background", 1: "a", 2: "b"}
    case = store.cases[0]
    label = store.label_crop(case, (0, 0, 0), case.shape)
    image = read_image(scans / "imagesTr" / "s1.nii.gz")
    np.testing.assert_array_equal(
        store.recipe.undo(label, case.geometry), read_label(scans / "labelsTr" / "s1.nii.gz", image)
    )


def test_a_case_with_a_changed_label_is_prepared_again(tmp_path: Path) -> None:
    scans = labelled(tmp_path / "scans")
    selfvox.prepare(scans, out=tmp_path / "store")
    earlier = times(tmp_path / "store")
    mask(scans / "labelsTr" / "s2.nii.gz", (2,))
    selfvox.prepare(scans, out=tmp_path / "store")
    assert rewritten(earlier, tmp_path / "store") == {"s2"}


def test_labels_that_change_names_are_prepared_again_although_size_and_time_are_the_same(
    tmp_path: Path,
) -> None:
    """Such as files of one archive: a mix-up that is repaired by renaming reaches the store."""
    first, second = (tmp_path / "scans" / "labels" / f"s{number}.nii" for number in range(2))
    for number, label in enumerate((first, second)):
        scan(tmp_path / "scans" / "images" / f"s{number}.nii", number)
        mask(label, (1 + number,))
        os.utime(label, ns=(10**18, 10**18))
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    assert [case.label_values for case in open_store(tmp_path / "store").cases] == [(0, 2), (0, 1)]


def test_stray_labelled_voxels_outside_the_foreground_box_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = labelled(tmp_path / "scans")
    label = np.zeros((14, 12, 10), np.uint8)
    label[0, 0, :3] = 1  # the box begins at 1
    label[4:12, 3:10, 3:9] = 1
    label[5, 5, 5] = 2
    nib.save(nib.Nifti1Image(label, np.diag([1, 1, 2, 1])), scans / "labelsTr" / "s1.nii.gz")
    selfvox.prepare(scans, out=tmp_path / "store")
    notes = {case.id: case.notes for case in open_store(tmp_path / "store").cases}
    note = "3 labelled voxels are cut off: they are outside the foreground box"
    assert notes == {"s0": (), "s1": (note,), "s2": (), "s3": ()}
    assert f"s1: {note}" in capsys.readouterr().err


@pytest.mark.fault("C8", "the label of another scan", "refused")
def test_a_label_that_is_partly_outside_the_foreground_box_is_refused(tmp_path: Path) -> None:
    scans = labelled(tmp_path / "scans")
    label = np.zeros((14, 12, 10), np.uint8)
    label[4:12, 3:10, 3:9] = 1
    label[0, 0, :2] = 2  # the box begins at 1
    label[5, 5, 5:9] = 2
    nib.save(nib.Nifti1Image(label, np.diag([1, 1, 2, 1])), scans / "labelsTr" / "s1.nii.gz")
    selfvox.prepare(scans, out=tmp_path / "store")
    assert [case.id for case in open_store(tmp_path / "store").cases] == ["s0", "s2", "s3"]
    rejected = (tmp_path / "store" / "rejected.csv").read_text()
    assert "its label has 2 of 6 voxels of class 2 in the empty background" in rejected


@pytest.mark.fault("F26", "a file that changes while it is read", "rejected")
def test_a_scan_that_changes_while_it_is_read_is_rejected(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Recipe.apply

    def slow_apply(recipe: Recipe, image: Image) -> PreparedScan:
        if image.name == "s1.nii.gz":
            scan(scans / "s1.nii.gz", seed=77)
        return apply(recipe, image)

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "apply", slow_apply)
        selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    assert [case.id for case in open_store(tmp_path / "store").cases] == ["s0", "s2", "s3", "s4"]
    rejected = (tmp_path / "store" / "rejected.csv").read_text()
    assert "s1,s1.nii.gz,changed while it was read; run the same command again" in rejected
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    assert len(open_store(tmp_path / "store").cases) == 5


def test_undeclared_classes_are_those_of_the_labels(tmp_path: Path) -> None:
    labelled(tmp_path / "scans")
    (tmp_path / "scans" / "dataset.json").unlink()
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store")
    assert open_store(tmp_path / "store").classes == {0: "background", 1: "class 1", 2: "class 2"}


@pytest.mark.fault("F27", "a damaged array of a store", "prepared again, once")
def test_only_damaged_arrays_are_prepared_again(scans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store)
    good = (store / "images" / "s3.npy").read_bytes()
    earlier = times(store)
    damaged = bytearray(good)
    damaged[-1] ^= 4
    (store / "images" / "s3.npy").write_bytes(damaged)
    (store / "images" / "s4.npy").unlink()
    stamp = times(store)["s3"]
    selfvox.prepare(scans, out=store)
    assert rewritten(earlier | {"s3": stamp}, store) == {"s3", "s4"}
    assert (store / "images" / "s3.npy").read_bytes() == good


def test_shards_and_a_last_call_make_the_store_of_one_call(scans: Path, tmp_path: Path) -> None:
    selfvox.prepare(scans, out=tmp_path / "one", workers=1)
    for number in (1, 0):
        selfvox.prepare(scans, out=tmp_path / "shards", workers=1, shard=f"{number}/2")
        with pytest.raises(DataError, match="this store is unfinished"):
            open_store(tmp_path / "shards")
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*/*.npy")}
    assert len(written) == len(list((tmp_path / "one").glob("*/*.npy")))
    selfvox.prepare(scans, out=tmp_path / "shards", workers=1)
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("one", "shards")]
    assert manifests[0] == manifests[1]
    # nothing was prepared twice
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())


@pytest.mark.parametrize("option", [{"test": 1}, {"validation": 1}, {"check": True}])
def test_what_is_for_the_whole_store_is_refused_in_a_shard(option: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is for the whole store; leave it out of a shard"):
        selfvox.prepare("scans", out="store", shard="0/2", **option)


def test_a_recipe_of_many_scans_is_fitted_to_a_sample(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(scans)
    assert fit_recipe.drawn_cases(dataset) == dataset.cases
    monkeypatch.setattr(fit_recipe, "MOST_FITTED", 2)
    drawn = fit_recipe.drawn_cases(dataset)
    assert len(drawn) == 2
    assert set(drawn) < set(dataset.cases)
    read = []
    real = fit_recipe.read_spacing
    monkeypatch.setattr(fit_recipe, "read_spacing", lambda file: read.append(file) or real(file))
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    assert sorted(read) == sorted(case.images[0] for case in drawn)


def flip_last_bit(file: Path) -> None:
    """Damage a file as a failing disk does, which keeps size and time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_arrays_are_read_again_only_on_request(scans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store)
    good = (store / "images" / "s3.npy").read_bytes()
    flip_last_bit(store / "images" / "s3.npy")
    selfvox.prepare(scans, out=store)
    assert (store / "images" / "s3.npy").read_bytes() != good
    selfvox.prepare(scans, out=store, check=True)
    assert (store / "images" / "s3.npy").read_bytes() == good


def test_what_was_hashed_is_not_hashed_again_not_even_of_a_copy(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = atomic_files.sha256

    def counted(path: Path) -> str:
        # the table of the cases is always hashed
        hashed.extend([path] if path.suffix == ".npy" else [])
        return real(path)

    monkeypatch.setattr(atomic_files, "sha256", counted)
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    first = len(hashed)
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    assert len(hashed) == first > 0
    # the times of a copy are other ones: it is hashed, once
    shutil.copytree(tmp_path / "store", tmp_path / "copy", copy_function=shutil.copyfile)
    for _ in range(2):
        selfvox.prepare(scans, out=tmp_path / "copy", workers=1)
        assert len(hashed) == 2 * first


def test_a_finished_store_is_brought_up_to_date_without_the_json_of_its_cases(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = stores.read_entry

    def counted(path: Path, case_id: str) -> StoredCase | None:
        read.append(case_id)
        return real(path, case_id)

    out = tmp_path / "store"
    selfvox.prepare(scans, out=out, workers=1)
    before = list(open_store(out).cases)
    monkeypatch.setattr(stores, "read_entry", counted)
    selfvox.prepare(scans, out=out, workers=1)
    assert read == []
    assert list(open_store(out).cases) == before
    # one that is younger than the table counts, and is read once; one that is gone is prepared
    changed = dataclasses.replace(before[1], notes=("seen again",))
    stores.write_entry(out, changed)
    (out / "cases" / f"{before[2].id}.json").unlink()
    selfvox.prepare(scans, out=out, workers=1)
    assert read.count(before[1].id) == 1
    assert set(read) <= {before[1].id, before[2].id}
    assert list(open_store(out).cases) == [before[0], changed, *before[2:]]
    read.clear()
    selfvox.prepare(scans, out=out, workers=1)
    assert read == []


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("x")])
def test_a_damaged_table_of_cases_is_made_again(
    scans: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    selfvox.prepare(scans, out=out, workers=1)
    before = list(open_store(out).cases)
    earlier = times(out)
    damage(out / "cases.safetensors")
    selfvox.prepare(scans, out=out, workers=1)
    assert "cases.safetensors" in capsys.readouterr().err
    assert list(open_store(out).cases) == before
    assert rewritten(earlier, out) == set()


def test_a_damaged_recipe_is_fitted_again(scans: Path, tmp_path: Path) -> None:
    selfvox.prepare(scans, out=tmp_path / "store")
    good = open_store(tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"recipe": {"size": None}, "cases": None})
    )
    selfvox.prepare(scans, out=tmp_path / "store")
    assert open_store(tmp_path / "store").cases == good.cases


def test_another_subject_in_the_table_reaches_the_store_without_new_arrays(
    scans: Path, tmp_path: Path
) -> None:
    table = scans / "table.csv"
    table.write_text("image,subject,grade\ns0.nii.gz,ann,0\ns1.nii.gz,bob,1\n")
    selfvox.prepare(table, out=tmp_path / "store")
    earlier = times(tmp_path / "store")
    table.write_text("image,subject,grade\ns0.nii.gz,ann,0\ns1.nii.gz,ann,2\n")
    selfvox.prepare(table, out=tmp_path / "store")
    assert [(case.subject, case.grade) for case in open_store(tmp_path / "store").cases] == [
        ("ann", 0),
        ("ann", 2),
    ]
    assert rewritten(earlier, tmp_path / "store") == set()


@pytest.mark.fault("X12", "paths, host and user", "in no file of a store")
def test_no_path_user_or_host_is_in_the_store(scans: Path, tmp_path: Path) -> None:
    selfvox.prepare(scans, out=tmp_path / "store", validation=1, test=1)
    (scans / "s1.nii.gz").write_bytes(b"broken")
    selfvox.prepare(scans, out=tmp_path / "store")
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in (str(tmp_path), os.uname().nodename, os.environ.get("HOME", "/root")):
                assert secret.encode() not in content, file


def test_one_scan_under_two_subjects_is_reported(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(scans / "s1.nii.gz", scans / "twin.nii.gz")
    selfvox.prepare(scans, out=tmp_path / "store")
    assert "s1, twin: the same scan under several subjects" in capsys.readouterr().err


def test_a_split_stays_unless_other_numbers_are_requested(scans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store, test=1, validation=1)
    first = split.read_split(store / "split.json")
    assert (len(first.train), len(first.validation), len(first.test)) == (3, 1, 1)
    scan(scans / "s9.nii.gz", 9)
    for numbers in ({}, {"test": 1, "validation": 1}):
        selfvox.prepare(scans, out=store, **numbers)
        second = split.read_split(store / "split.json")
        assert (second.validation, second.test) == (first.validation, first.test)
        assert set(second.train) == {*first.train, "s9"}
    selfvox.prepare(scans, out=store, test=2, validation=1)
    assert len(split.read_split(store / "split.json").test) == 2
    assert open_store(store).split() == split.read_split(store / "split.json")


def test_a_subject_whose_name_is_corrected_keeps_its_part_of_the_split(
    scans: Path, tmp_path: Path
) -> None:
    table = scans / "table.csv"
    store = tmp_path / "store"

    def name(*subjects: str) -> split.Split:
        rows = [f"s{number}.nii.gz,{subject}\n" for number, subject in enumerate(subjects)]
        table.write_text("image,subject\n" + "".join(rows))
        selfvox.prepare(table, out=store)
        return split.read_split(store / "split.json")

    table.write_text("image,subject\ns0.nii.gz,ann\ns1.nii.gz,ann\ns2.nii.gz,bob\ns3.nii.gz,cid\n")
    selfvox.prepare(table, out=store)
    split.write_split(
        split.Split(train=("bob",), validation=("cid",), test=("ann",), seed=3),
        store / "split.json",
    )
    scan(scans / "s1.nii.gz", seed=77)  # its arrays are prepared again
    assert name("eve", "eve", "bob", "cid", "eve") == split.Split(("bob",), ("cid",), ("eve",), 3)
    assert name("eve", "fay", "bob", "gus") == split.Split(("bob",), ("gus",), ("eve", "fay"), 3)
    earlier = (store / "split.json").read_bytes()
    with pytest.raises(
        DataError,
        match=r"bob now has scans .* in train and test; make a new split \(another `out`\)",
    ):
        name("eve", "bob", "bob", "gus")
    assert (store / "split.json").read_bytes() == earlier
    assert {case.subject for case in open_store(store).cases} == {"eve", "fay", "bob", "gus"}
    assert name("eve", "hal", "bob", "gus", "new") == split.Split(
        ("bob", "new"), ("gus",), ("eve", "hal"), 3
    )


def test_a_scan_that_gets_another_id_keeps_its_part_of_the_split(tmp_path: Path) -> None:
    """A second file of one stem changes both ids to their paths; the first is not new by that."""
    store = tmp_path / "store"
    for number in range(4):
        scan(tmp_path / "scans" / f"site{number}" / f"p{number}.nii.gz", number)
    selfvox.prepare(tmp_path / "scans", out=store)
    split.write_split(
        split.Split(train=("p1",), validation=("p2",), test=("p0", "p3"), seed=3),
        store / "split.json",
    )
    scan(tmp_path / "scans" / "other" / "p0.nii.gz", 77)
    (tmp_path / "scans" / "site2" / "p2.nii.gz").rename(tmp_path / "scans" / "site2" / "ann.nii.gz")
    selfvox.prepare(tmp_path / "scans", out=store)
    assert [case.subject for case in open_store(store).cases] == [
        "ann",
        "other_p0",
        "p1",
        "p3",
        "site0_p0",
    ]
    assert split.read_split(store / "split.json") == split.Split(
        ("p1", "other_p0"), ("ann",), ("p3", "site0_p0"), 3
    )


def test_only_labelled_subjects_are_set_aside(tmp_path: Path) -> None:
    labelled(tmp_path / "scans")
    (tmp_path / "scans" / "dataset.json").unlink()
    for number in range(10, 16):
        scan(tmp_path / "scans" / "imagesTr" / f"s{number}.nii.gz", number)
    selfvox.prepare(tmp_path / "scans", out=tmp_path / "store", test=2, validation=1)
    drawn = split.read_split(tmp_path / "store" / "split.json")
    assert {*drawn.test, *drawn.validation} <= {"s0", "s1", "s2", "s3"}
    assert len(drawn.train) == 7


def test_a_window_is_kept_until_the_data_set_has_doubled(scans: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store, intensity="ct")
    window = open_store(store).recipe
    earlier = times(store)
    scan(scans / "s5.nii.gz", 5)
    selfvox.prepare(scans, out=store, intensity="ct")
    assert open_store(store).recipe == window
    assert rewritten(earlier, store) == {"s5"}
    for number in range(6, 12):
        scan(scans / f"s{number}.nii.gz", number)
    selfvox.prepare(scans, out=store, intensity="ct")
    assert open_store(store).recipe != window


@pytest.mark.fault(
    "F26c",
    "a store of scans that are all gone",
    "refused, the store is left as it is",
)
def test_a_store_of_other_scans_and_a_foreign_folder_are_left_alone(
    scans: Path, tmp_path: Path
) -> None:
    selfvox.prepare(scans, out=tmp_path / "store")
    scan(tmp_path / "others" / "other.nii.gz")
    with pytest.raises(UsageError, match="store of other scans"):
        selfvox.prepare(tmp_path / "others", out=tmp_path / "store")
    assert len(open_store(tmp_path / "store").cases) == 5
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="contains files that are not of a store"):
        selfvox.prepare(scans, out=tmp_path / "home")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8, 8)}, "size: 2 numbers given for scans of 3 axes"),
        ({"intensity": "ct,mri"}, "2 given for 1 channels"),
        ({"intensity": "mri", "scheduler": "tcp://127.0.0.1:1"}, "cannot be reached"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    scans: Path,
    tmp_path: Path,
    settings: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "SCHEDULER_TIMEOUT", "1s")
    with pytest.raises((UsageError, ResourceError), match=message) as caught:
        selfvox.prepare(scans, out=tmp_path / "store", **settings)
    assert "\n" not in str(caught.value)


# --- killed, locked, crashed


SLOW_DISK = """
import time
import numpy as np

def save(*given, save=np.save, **options):
    time.sleep(1)
    return save(*given, **options)

np.save = save
"""


def start(scans: Path, store: Path) -> subprocess.Popen[bytes]:
    """A user's script, without `if __name__ == "__main__"`: workers must not run it again.

    Each scan takes a while to be written, however slowly the test itself runs. The script handles
    Ctrl-C, which background jobs of a shell ignore.
    """
    folder = scans.parent / "started"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW_DISK)
    (folder / "script.py").write_text(
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import selfvox\nselfvox.prepare({str(scans)!r}, out={str(store)!r}, workers=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    script = [sys.executable, folder / "script.py"]
    return subprocess.Popen(script, stderr=subprocess.PIPE, start_new_session=True, env=environment)


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("the condition never came true")


def children(pid: int) -> set[int]:
    pids: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            pids |= {int(stat.parent.name)} | children(int(stat.parent.name))
    return pids


@pytest.mark.fault(
    "F8 F3v",
    "SIGKILL during preparation",
    "no process left; the next run completes it",
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see orphans")
def test_a_killed_run_leaves_no_process_and_the_next_one_completes_it(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    store = tmp_path / "store"
    for number in range(60):
        scan(scans / f"s{number}.nii.gz", number)
    with start(scans, store) as process:
        wait_for(lambda: len(list(store.glob("cases/*.json"))) >= 5)
        family = children(process.pid)
        process.kill()
    assert len(family) >= 3  # fork server and two workers
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
    finished = {file.stem: file.stat().st_mtime_ns for file in store.glob("images/*.npy")}
    complete = {file.stem for file in store.glob("cases/*.json")}
    assert 5 <= len(complete) < 60
    with pytest.raises(DataError, match="unfinished; run the same"):
        open_store(store)

    (store / "images" / ".99999.part.s7.npy").write_bytes(b"half")
    selfvox.prepare(scans, out=store, workers=1)
    assert len(open_store(store).cases) == 60
    assert not rewritten(finished, store) & complete
    assert not list(store.glob("**/.*.part.*"))
    selfvox.prepare(scans, out=tmp_path / "undisturbed", workers=1)
    assert open_store(store).cases == open_store(tmp_path / "undisturbed").cases


@pytest.mark.fault("F5", "SIGINT during preparation", "prepared cases are kept")
def test_ctrl_c_stops_and_keeps_the_prepared_cases(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    store = tmp_path / "store"
    for number in range(60):
        scan(scans / f"s{number}.nii.gz", number)
    with start(scans, store) as process:
        wait_for(lambda: list(store.glob("cases/*.json")))
        os.killpg(process.pid, signal.SIGINT)  # a terminal signals the whole group
        errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode != 0
    assert errors.count("Traceback") == 1  # its own, none of the workers'
    complete = {file.stem for file in store.glob("cases/*.json")}
    assert 0 < len(complete) < 60
    earlier = times(store)
    selfvox.prepare(scans, out=store, workers=1)
    assert not rewritten(earlier, store) & complete
    assert len(open_store(store).cases) == 60


@pytest.mark.fault("F25", "two processes at one store", "the second is refused")
def test_a_second_process_is_refused_with_the_id_of_the_first(scans: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "store" / "cases").mkdir(parents=True)
    with (tmp_path / "store" / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="process 4711 is writing here"):
            selfvox.prepare(scans, out=tmp_path / "store")
    # the first process is gone, its lock file is not
    selfvox.prepare(scans, out=tmp_path / "store")


@pytest.mark.fault("F8", "a full disk during preparation", "the next run continues")
def test_the_run_after_a_full_disk_continues(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    real_save = np.save

    def full(file: Path, array: np.ndarray, **options: object) -> None:
        if file.name.endswith("s3.npy"):
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(file, array, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(ResourceError, match="disk is full"):
            selfvox.prepare(scans, out=store, workers=1)
    assert {file.name for file in (store / "images").iterdir()} == {"s0.npy", "s1.npy", "s2.npy"}
    earlier = times(store)
    selfvox.prepare(scans, out=store)
    assert rewritten(earlier, store) == {"s3", "s4"}


@pytest.mark.fault("F13 F33", "a worker that is killed by its item", "only that scan is rejected")
def test_a_dying_worker_costs_only_its_item() -> None:
    """Item 3 kills whatever process runs it; all others give their result."""
    items = [partial(int, number) if number != 3 else partial(os._exit, 9) for number in range(12)]
    results = dict(parallel.run(operator.call, items, workers=2))
    assert isinstance(results.pop(3), parallel.WorkerDiedError)
    assert results == {number: number for number in range(12) if number != 3}


def test_workers_start_without_torch() -> None:
    code = "import sys, selfvox.data.preparation.build_store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "forkserver" in multiprocessing.get_all_start_methods() or sys.platform == "win32"


@pytest.mark.filterwarnings("ignore")  # dask's own
def test_a_dask_cluster_makes_the_same_store(scans: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    selfvox.prepare(scans, out=tmp_path / "here", workers=1, intensity="ct")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        selfvox.prepare(
            scans, out=tmp_path / "there", scheduler=cluster.scheduler_address, intensity="ct"
        )
    assert open_store(tmp_path / "here").cases == open_store(tmp_path / "there").cases


# --- for other verbs


def test_scans_and_their_store_give_the_same_cases(scans: Path, tmp_path: Path) -> None:
    built = open_or_build_store(scans, tmp_path / "run" / "store", PreparationSettings())
    opened = open_or_build_store(
        tmp_path / "run" / "store", tmp_path / "unused", PreparationSettings()
    )
    assert isinstance(built, Store)
    assert built.cases == opened.cases
    assert not (tmp_path / "unused").exists()
    with pytest.raises(DataError, match="has neither labels nor grades"):
        open_or_build_store(
            scans, tmp_path / "run" / "store", PreparationSettings(), need_labels=True
        )
    for option, value in (("size", (9, 9, 9)), ("spacing", (2.0, 2.0, 2.0)), ("intensity", "ct")):
        with pytest.raises(UsageError, match=f"^{option}: .* was prepared differently"):
            open_or_build_store(
                tmp_path / "run" / "store",
                tmp_path / "unused",
                PreparationSettings(**{option: value}),
            )


def test_a_store_inside_a_plain_folder_of_scans_is_refused(scans: Path) -> None:
    with pytest.raises(UsageError, match="is inside the folder of the scans"):
        open_or_build_store(scans, scans / "run" / "store", PreparationSettings())
    with pytest.raises(UsageError, match="is inside the folder of the scans"):
        selfvox.prepare(scans, out=scans / "store")
    assert not (scans / "store").exists()


def test_scans_follow_the_recipe_of_an_encoder(scans: Path, tmp_path: Path) -> None:
    first = open_or_build_store(
        scans, tmp_path / "a", PreparationSettings(size=(8, 8, 8), intensity="ct")
    )
    scan(tmp_path / "more" / "new.nii.gz", 50)
    second = open_or_build_store(
        tmp_path / "more", tmp_path / "b", PreparationSettings(), recipe=first.recipe
    )
    assert second.recipe == first.recipe
    assert second.cases[0].shape == (8, 8, 8)
    open_or_build_store(tmp_path / "a", tmp_path / "c", PreparationSettings(), recipe=first.recipe)
    equal = PreparationSettings(size=(8, 8, 8), intensity="ct")
    assert (
        open_or_build_store(tmp_path / "more", tmp_path / "b", equal, recipe=first.recipe).recipe
        == first.recipe
    )
    for option, value in (("size", (9, 9, 9)), ("spacing", (2.0, 2.0, 2.0)), ("intensity", "mri")):
        with pytest.raises(
            UsageError, match=f"^{option}: the encoder's scans were prepared differently"
        ):
            open_or_build_store(
                tmp_path / "more",
                tmp_path / "e",
                PreparationSettings(**{option: value}),
                recipe=first.recipe,
            )
    unsized = Recipe.from_dict(first.recipe.to_dict() | {"size": None})
    with pytest.raises(DataError, match="in another way than the encoder"):
        open_or_build_store(tmp_path / "a", tmp_path / "c", PreparationSettings(), recipe=unsized)
    two = Recipe.from_dict(
        first.recipe.to_dict() | {"channel_names": ["a", "b"], "intensity": [{"kind": "mri"}] * 2}
    )
    with pytest.raises(DataError, match=r"has 1 channels .* where the encoder was trained with 2"):
        open_or_build_store(tmp_path / "more", tmp_path / "d", PreparationSettings(), recipe=two)


# --- real scans


def subset(source: Path, target: Path, names: list[str]) -> Path:
    for name in names:
        for file in source.glob(name):
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file.relative_to(source))
    return target


def test_hippocampus_round_trip(tmp_path: Path) -> None:
    source = real("Task04_Hippocampus")
    scans = subset(source, tmp_path / "scans", ["*Tr/hippocampus_00*.nii.gz"])
    selfvox.prepare(scans, out=tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert len(store.cases) >= 4
    for case in store.cases:
        label = store.label_crop(case, (0, 0, 0), case.shape)
        image = read_image(scans / "imagesTr" / f"{case.id}.nii.gz")
        original = read_label(scans / "labelsTr" / f"{case.id}.nii.gz", image)
        np.testing.assert_array_equal(store.recipe.undo(label, case.geometry), original)


def test_sarcoma_three_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = real("Dataset051_Sarcoma")
    scans = subset(source, tmp_path / "scans", ["*Tr/STS_00[12]*", "dataset.json"])
    table = json.loads((scans / "dataset.json").read_text())
    (scans / "dataset.json").write_text(json.dumps(table | {"numTraining": 2}))
    selfvox.prepare(scans, out=tmp_path / "store", spacing=(3, 3, 3))
    assert "intensity of CT: ct, by its name" in capsys.readouterr().err
    store = open_store(tmp_path / "store")
    assert [channel.kind for channel in store.recipe.intensity] == ["mri", "ct", "mri"]
    for case in store.cases:
        assert case.spacing_mm == pytest.approx((3, 3, 3))
        assert store.crop(case, (0, 0, 0), case.shape).shape == (3, *case.shape)
        back = store.recipe.undo(store.label_crop(case, (0, 0, 0), case.shape), case.geometry)
        image = read_image(scans / "imagesTr" / f"{case.id}_0000.nii.gz")
        original = read_label(scans / "labelsTr" / f"{case.id}.nii.gz", image)
        assert 2 * (back & original).sum() / (back.sum() + original.sum()) > 0.9


def test_whole_heads_as_a_plain_folder(tmp_path: Path) -> None:
    source = real("ds002748_bids")
    scans = subset(source, tmp_path / "scans", ["sub-0[13]/anat/*.nii.gz"])
    selfvox.prepare(scans, out=tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert [case.subject for case in store.cases] == ["sub-01", "sub-03"]
    for case, file in zip(store.cases, sorted(scans.rglob("*.nii.gz")), strict=True):
        raw = nib.as_closest_canonical(nib.load(file))  # a second implementation of the orientation
        head = np.asarray(raw.dataobj, dtype=np.float32)
        box = tuple(
            slice(a, b) for a, b in zip(case.geometry.start, case.geometry.stop, strict=True)
        )
        crop = store.crop(case, (0, 0, 0), case.shape)[0]
        assert np.corrcoef(crop.ravel(), head[box].ravel())[0, 1] > 0.99999
        np.testing.assert_allclose(
            nib.affines.apply_affine(raw.affine, case.geometry.start),
            np.array(case.affine)[:3, 3],
            atol=1e-4,
        )


def test_fundus_pictures(tmp_path: Path) -> None:
    source = real("idrid_fundus")
    scans = subset(source, tmp_path / "scans", ["images/train_IDRiD_00*.png"])
    selfvox.prepare(scans, out=tmp_path / "store", size=(64, 64))
    store = open_store(tmp_path / "store")
    assert [channel.kind for channel in store.recipe.intensity] == ["photo"] * 3
    assert {store.crop(case, (0, 0), (64, 64)).shape for case in store.cases} == {(3, 64, 64)}
