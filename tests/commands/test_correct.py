"""`correct`: what a person changed becomes labels, and nothing else does."""

import csv
import gzip
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data import sources
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, UsageError
from selfvox.prediction.review_marks import COLUMNS
from selfvox.runs.atomic_files import sha256

from ..conftest import blob, make_run, write_scan
from ..data.sources.test_dicom import NAME, NUMBER, save, series


@pytest.fixture
def predictions(tmp_path):
    """Predictions of three scans; scan_1 and scan_2 are not test subjects of the run."""
    for number in range(3):
        write_scan(tmp_path / "new" / f"new_{number}.nii.gz", blob((20, 17, 12), number))
    run = make_run(tmp_path / "run")
    selfvox.predict(run, tmp_path / "new", out=tmp_path / "predictions", device="cpu")
    return tmp_path / "predictions"


def edit(file, to=None, value=2):
    """Set a block of a label to a class, in place or in another folder."""
    image = nib.load(file)
    label = np.asarray(image.dataobj).copy()
    label[8:12, 7:10, 5:8] = value  # within the scan's foreground
    target = file if to is None else to / file.name
    target.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label, image.affine, image.header), target)
    return label


def mark(folder, **marks):
    lines = [",".join(COLUMNS)]
    for case, (word, corrected) in marks.items():
        digest = sha256(folder / f"{case}.nii.gz")
        lines.append(f"{case},{word},a note,2026-01-31T12:00:00Z,{digest},{corrected}")
    (folder / "review_marks.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows(out, name="labelled.csv"):
    with (out / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def correct(folder, **settings):
    out = folder.parent / "corrected"
    selfvox.correct(folder, out=out, **settings)
    return out


def test_an_edited_prediction_becomes_the_label_of_its_scan(predictions):
    label = edit(predictions / "new_1.nii.gz")
    out = correct(predictions)
    (row,) = rows(out)
    assert row["image"] == str((predictions.parent / "new/new_1.nii.gz").resolve())
    assert row["origin"] == "corrected"
    written = nib.load(row["label"])
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)
    np.testing.assert_array_equal(written.affine, nib.load(row["image"]).affine)
    # the table is a data set, with the names of the classes
    dataset = sources.find_dataset(out / "labelled.csv")
    assert [case.id for case in dataset.cases] == ["new_1"]
    assert dataset.classes == {0: "background", 1: "organ", 2: "lesion"}


def test_an_exported_correction_says_what_was_changed(predictions):
    before = np.asarray(nib.load(predictions / "new_0.nii.gz").dataobj)
    after = edit(predictions / "new_0.nii.gz", predictions.parent / "exported")
    out = correct(predictions, corrections=predictions.parent / "exported")
    record = json.loads((out / "corrections.json").read_text())
    (case,) = record["cases"]
    assert case["changed_voxels"] == (before != after).sum()
    present = [value for value in (1, 2) if ((before == value) | (after == value)).any()]
    dice = [
        2
        * ((before == value) & (after == value)).sum()
        / ((before == value).sum() + (after == value).sum())
        for value in present
    ]
    assert case["dice_of_prediction"] == pytest.approx(np.mean(dice))
    assert (
        record["network_sha256"]
        == json.loads((predictions / "predictions.json").read_text())["network_sha256"]
    )


def test_marks_decide_what_counts(predictions):
    edit(predictions / "new_0.nii.gz", predictions.parent / "exported")
    (predictions.parent / "exported/new_0.nii.gz").rename(
        predictions.parent / "exported/renamed.nii.gz"
    )
    edit(predictions / "new_2.nii.gz", predictions.parent / "exported")
    mark(
        predictions,
        new_0=("fail", "renamed.nii.gz"),
        new_1=("pass", ""),
        new_2=("artefact", "new_2.nii.gz"),
    )
    exported = predictions.parent / "exported"
    out = correct(predictions, corrections=exported)
    assert [(row["subject"], row["origin"]) for row in rows(out)] == [("new_0", "corrected")]
    shutil.rmtree(out)
    out = correct(predictions, corrections=exported, passed=True)
    found = {row["subject"]: row["origin"] for row in rows(out)}
    assert found == {"new_0": "corrected", "new_1": "passed"}
    record = json.loads((out / "corrections.json").read_text())["cases"][0]
    assert (record["mark"], record["note"]) == ("fail", "a note")


def test_the_labelled_scans_are_in_the_table_too(predictions, tmp_path):
    for number in range(2):
        write_scan(tmp_path / f"old/images/old_{number}.nii.gz", blob((20, 17, 12), number + 5))
        label = (blob((20, 17, 12), number + 5) > 0).astype(np.uint8)
        write_scan(tmp_path / f"old/labels/old_{number}.nii.gz", label)
    edit(predictions / "new_1.nii.gz")
    out = correct(predictions, labelled=tmp_path / "old")
    assert [row["origin"] for row in rows(out)] == ["labelled", "labelled", "corrected"]
    store = selfvox.prepare(out / "labelled.csv", out=tmp_path / "store", workers=1)
    labels = list((store / "labels").rglob("*.npy"))
    assert len(labels) == 3


def test_a_scan_that_is_corrected_again_is_listed_with_its_last_label(predictions, tmp_path):
    edit(predictions / "new_0.nii.gz")
    edit(predictions / "new_1.nii.gz")
    first = correct(predictions).rename(tmp_path / "first")
    table = (first / "labelled.csv").read_text()
    (first / "labelled.csv").write_text(table.replace("/corrected/", "/first/"))
    again = edit(predictions / "new_1.nii.gz", value=1)
    out = correct(predictions, labelled=first / "labelled.csv")
    found = {row["subject"]: row["label"] for row in rows(out)}
    assert len(rows(out)) == len(found) == 2
    assert np.array_equal(np.asarray(nib.load(found["new_1"]).dataobj), again)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: edit(file, value=7), r"7"),
        (lambda file: shift(file), r"grid|affine|origin"),
        (lambda file: None, "equals the prediction; correct it, or mark it with pass"),
    ],
    ids=["class", "grid", "unchanged"],
)
def test_what_is_no_correction_is_named_and_the_others_are_taken(predictions, change, reason):
    exported = predictions.parent / "exported"
    exported.mkdir()
    shutil.copy(predictions / "new_0.nii.gz", exported)
    change(exported / "new_0.nii.gz")
    edit(predictions / "new_1.nii.gz")
    with pytest.raises(DataError, match=r"1 corrected labels cannot be used, see rejected\.csv"):
        correct(predictions, corrections=exported)
    out = predictions.parent / "corrected"
    assert [row["subject"] for row in rows(out)] == ["new_1"]
    (rejected,) = rows(out, "rejected.csv")
    assert rejected["case"] == "new_0"
    assert re.search(reason, rejected["reason"])


def shift(file):
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 3
    edit(file)
    label = np.asarray(nib.load(file).dataobj)
    nib.save(nib.Nifti1Image(label, affine), file)


def test_a_test_subject_of_the_run_is_refused(run, scans, tmp_path):
    selfvox.predict(run, scans, out=tmp_path / "predictions", device="cpu")
    edit(tmp_path / "predictions/scan_1.nii.gz")
    with pytest.raises(DataError, match="1 corrected labels cannot be used"):
        correct(tmp_path / "predictions")
    assert "a test subject of the run" in (tmp_path / "corrected/rejected.csv").read_text()
    assert not (tmp_path / "corrected/labelled.csv").exists()


def test_nothing_to_take_is_an_error(predictions):
    with pytest.raises(DataError, match="no label was changed since it was predicted"):
        correct(predictions)
    assert not (predictions.parent / "corrected").exists()
    edit(predictions / "new_0.nii.gz")
    correct(predictions)
    with pytest.raises(UsageError, match="contains corrections already"):
        correct(predictions)


def test_a_mark_of_an_earlier_prediction_does_not_count(predictions):
    mark(predictions, new_1=("pass", ""))
    marks = predictions / "review_marks.csv"
    text = marks.read_text().replace(sha256(predictions / "new_1.nii.gz"), "0" * 64)
    marks.write_text(text)
    with pytest.raises(DataError, match="cannot be used"):
        correct(predictions, passed=True)
    rejected = (predictions.parent / "corrected/rejected.csv").read_text()
    assert "was marked when it had another prediction" in rejected


def test_labelled_scans_without_labels_are_refused_before_anything_is_written(predictions):
    edit(predictions / "new_0.nii.gz")
    with pytest.raises(DataError, match="has no label images; name the labelled scans"):
        correct(predictions, labelled=predictions.parent / "new")
    assert not (predictions.parent / "corrected").exists()


def test_an_unknown_run_is_printed_since_its_test_subjects_are_unknown(predictions, capsys):
    edit(predictions / "new_0.nii.gz")
    (predictions.parent / "run/split.json").unlink()
    correct(predictions)
    assert "its run is not found, so that nobody knows its test subjects" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folder", "decathlon"])
def test_several_channels_in_one_file_are_corrected_and_prepared_again(layout, tmp_path):
    run = make_run(tmp_path / "run", channel_names=("t1", "flair"))
    for number in range(2):
        scan = np.stack([blob((20, 17, 12), number), blob((20, 17, 12), number + 9)], -1)
        write_scan(tmp_path / f"new/imagesTr/new_{number}.nii.gz", scan)
    if layout == "decathlon":
        names = ["imagesTr/new_0.nii.gz", "imagesTr/new_1.nii.gz"]
        content = {"modality": {"0": "t1", "1": "flair"}, "test": names, "training": []}
        (tmp_path / "new/dataset.json").write_text(json.dumps(content))
    selfvox.predict(run, tmp_path / "new", out=tmp_path / "predictions", device="cpu")
    label = edit(tmp_path / "predictions/new_1.nii.gz")
    out = correct(tmp_path / "predictions")
    store = selfvox.prepare(out / "labelled.csv", out=tmp_path / "store", workers=1)
    prepared = open_store(store)
    assert prepared.recipe.channel_names == ("t1", "flair")
    (case,) = prepared.cases
    whole = ((0, 0, 0), case.shape)
    assert len(prepared.crop(case, *whole)) == 2
    assert (prepared.label_crop(case, *whole) == 2).sum() == (label == 2).sum()
    # the table goes on to grow: the next round takes it as the labelled scans
    edit(tmp_path / "predictions/new_0.nii.gz")
    selfvox.correct(tmp_path / "predictions", labelled=out / "labelled.csv", out=tmp_path / "again")
    assert [row["subject"] for row in rows(tmp_path / "again")] == ["new_0", "new_1"]


def test_a_file_per_channel_does_not_join_one_file_of_all_channels(tmp_path):
    run = make_run(tmp_path / "run", channel_names=("t1", "flair"))
    scan = np.stack([blob((20, 17, 12), 0), blob((20, 17, 12), 9)], -1)
    write_scan(tmp_path / "new/new_0.nii.gz", scan)
    selfvox.predict(run, tmp_path / "new", out=tmp_path / "predictions", device="cpu")
    edit(tmp_path / "predictions/new_0.nii.gz")
    for name in ("t1", "flair"):
        write_scan(tmp_path / f"old/{name}.nii.gz", blob((20, 17, 12), 1))
    write_scan(tmp_path / "old/label.nii.gz", (blob((20, 17, 12), 1) > 0).astype(np.uint8))
    table = tmp_path / "old/table.csv"
    table.write_text("image_t1,image_flair,label\nt1.nii.gz,flair.nii.gz,label.nii.gz\n")
    with pytest.raises(DataError, match="has a file per channel where the predicted scans have"):
        correct(tmp_path / "predictions", labelled=table)
    assert not (tmp_path / "corrected").exists()


def test_a_corrected_series_of_dicom_becomes_a_file_that_can_be_prepared(tmp_path):
    slices = save(tmp_path / "new", series(shape=(20, 17), count=12))
    run = make_run(tmp_path / "run")
    (prediction,) = selfvox.predict(run, slices, out=tmp_path / "predictions", device="cpu")
    label = edit(prediction)
    out = correct(tmp_path / "predictions")
    (row,) = rows(out)
    (converted,) = selfvox.convert(slices, out=tmp_path / "converted")
    for made in (nib.load(row["image"]), nib.load(converted)):
        np.testing.assert_array_equal(made.affine, nib.load(prediction).affine)
        np.testing.assert_array_equal(made.get_fdata(), nib.load(converted).get_fdata())
    np.testing.assert_array_equal(np.asarray(nib.load(row["label"]).dataobj), label)
    for file in (*out.rglob("*.nii.gz"), out / "labelled.csv"):
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        assert not any(secret.encode() in content for secret in (NAME, NUMBER))
    selfvox.prepare(out / "labelled.csv", out=tmp_path / "store", workers=1)
    # corrected once more, it replaces the row of before
    again = tmp_path / "again"
    edit(prediction, value=1)
    selfvox.correct(tmp_path / "predictions", labelled=out / "labelled.csv", out=again)
    assert [row["origin"] for row in rows(again)] == ["corrected"]
