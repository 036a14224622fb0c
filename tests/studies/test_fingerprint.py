"""A study's fingerprint differs if and only if another scan, person, grade or split is used."""

import json
import shutil

import pytest

from selfvox.data.preparation import split as splits
from selfvox.data.preparation.manifest import write_manifest
from selfvox.data.preparation.store import open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.studies import fingerprint


@pytest.fixture
def out(tmp_path, shapes_store):
    """A study's folder with a store and one finished cell."""
    shutil.copytree(shapes_store, tmp_path / "store")
    cell = tmp_path / "cells" / "scratch" / "2-labels-seed-0"
    cell.mkdir(parents=True)
    (cell / "done.json").write_text("{}")
    return tmp_path


def edit_cases(out, change):
    """Prepare the store again, as if the scans had become others."""
    folder = out / "store"
    store = open_store(folder)
    cases = [case.to_dict() for case in store.cases]
    change(cases)
    cases = [StoredCase.from_dict(json.loads(json.dumps(case))) for case in cases]
    write_manifest(folder, store.recipe, store.classes, cases, {}, store.regions)


def record_again(out):
    """Continue a study after its stores were brought up to date."""
    fingerprint.record(out, fingerprint.recorded(out))


CHANGES = {
    "image_hash": lambda case: case.update(image_hash="0" * 64),
    "subject": lambda case: case.update(subject="somebody"),
    "grade": lambda case: case.update(grade=3),
    "label": lambda case: case["sha256"].update(labels="0" * 64),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_case_that_changed_in_anything_that_matters_stops_a_study(name, out):
    record_again(out)
    recorded = (out / fingerprint.FILE).read_bytes()
    edit_cases(out, lambda cases: CHANGES[name](cases[0]))
    with pytest.raises(DataError, match=r"1 differ \(.* has changed\); restore the previous scans"):
        record_again(out)
    assert (out / fingerprint.FILE).read_bytes() == recorded


def test_a_case_that_was_prepared_again_from_the_same_files_does_not_stop_a_study(out):
    record_again(out)
    edit_cases(out, lambda cases: cases[0].update(notes=["seen again"]))
    record_again(out)


def test_a_subject_that_moves_to_another_part_of_the_split_stops_a_study(out):
    record_again(out)
    split = splits.read_split(out / "store" / "split.json")
    moved = splits.Split(
        split.train[1:], (*split.validation, split.train[0]), split.test, split.seed
    )
    splits.write_split(moved, out / "store" / "split.json")
    with pytest.raises(DataError, match="the split is not the one that the study began with"):
        record_again(out)


def test_before_anything_is_done_the_scans_may_change(out):
    shutil.rmtree(out / "cells")
    record_again(out)
    edit_cases(out, lambda cases: cases[0].update(subject="somebody"))
    record_again(out)


def test_the_stores_of_a_method_that_left_the_plan_stay_recorded(out):
    shutil.copytree(out / "store", out / "scans" / "other")
    record_again(out)
    shutil.rmtree(out / "scans" / "other")
    record_again(out)
    assert set(fingerprint.recorded(out)["cases"]) == {"store", "scans/other"}
    fingerprint.forget(out, "scans")
    assert set(fingerprint.recorded(out)["cases"]) == {"store"}
