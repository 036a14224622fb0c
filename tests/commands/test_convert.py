"""`convert` keeps voxels and grid of a scan, and nothing of the person."""

import csv
import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import selfvox
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, UsageError

from ..conftest import affine, blob, write_scan
from ..data.sources.test_dicom import save, series

CANARY = b"KANARIA"


def content_of(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_a_dicom_series_keeps_its_voxels_and_grid_and_no_person(tmp_path):
    slices = series(PatientName="KANARIA^ANNA", PatientID="KANARIA-7", StudyDescription="KANARIA")
    save(tmp_path / "dicom", slices)
    (tmp_path / "out").mkdir()  # an empty folder is taken
    (path,) = selfvox.convert(tmp_path / "dicom", out=tmp_path / "out")
    written = nib.load(path)
    scan = read_case(find_dataset(tmp_path / "dicom").cases[0], 1)
    np.testing.assert_array_equal(np.asarray(written.dataobj), scan.data[0])
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)
    assert CANARY not in content_of(path)
    assert CANARY.decode() not in path.name


def test_a_header_loses_its_texts_and_keeps_its_grid(tmp_path):
    matrix = affine(turn=0.4, axes=(1, 2, 0), signs=(1, -1, 1))
    scan = write_scan(tmp_path / "scans" / "a.nii.gz", blob((20, 17, 12)), matrix)
    assert b"DOE^JANE" in content_of(scan)
    # a name that nnU-Net's folders have means nothing
    (path,) = selfvox.convert(tmp_path / "scans", out=tmp_path / "imagesTr")
    assert path.name == "a.nii.gz"
    assert b"DOE^JANE" not in content_of(path)
    before, after = nib.load(scan), nib.load(path)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    assert after.get_data_dtype() == before.get_data_dtype()


def test_labelled_scans_become_a_data_set_of_nnunet(tmp_path):
    for number in range(2):
        data = blob((20, 17, 12), number)
        write_scan(tmp_path / "scans" / "images" / f"s{number}.nii.gz", data)
        label = (data > 800).astype(np.uint8) * 2
        write_scan(tmp_path / "scans" / "labels" / f"s{number}.nii.gz", label)
    selfvox.convert(tmp_path / "scans", out=tmp_path / "out")
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "class 2": 2}
    assert description["numTraining"] == 2
    dataset = find_dataset(tmp_path / "out")
    assert dataset.source == "nnunet"
    assert [case.id for case in dataset.cases] == ["s0", "s1"]
    for case in dataset.cases:
        expected = nib.load(tmp_path / "scans" / "labels" / f"{case.id}.nii.gz")
        actual = nib.load(case.label)
        np.testing.assert_array_equal(np.asarray(actual.dataobj), np.asarray(expected.dataobj))


def test_what_cannot_be_converted_is_listed_and_the_rest_is_written(tmp_path):
    write_scan(tmp_path / "scans" / "a.nii.gz", blob((20, 17, 12)))
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="1 of 2 scans could not be converted, see rejected"):
        selfvox.convert(tmp_path / "scans", out=tmp_path / "out")
    assert (tmp_path / "out" / "a.nii.gz").exists()
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["b"]
    with pytest.raises(UsageError, match="is not an empty folder"):
        selfvox.convert(tmp_path / "scans", out=tmp_path / "out")
    with pytest.raises(UsageError, match="is among the scans"):
        selfvox.convert(tmp_path / "scans", out=tmp_path / "scans" / "out")


def write_labelled(root, *subjects):
    """Scans of two channels with labels, as a table."""
    rows = ["image_T1,image_FLAIR,label,subject"]
    for number, subject in enumerate(subjects):
        names = [f"{kind}{number}.nii.gz" for kind in ("t1_", "flair_", "label_")]
        data = blob((20, 17, 12), number)
        matrix = affine(turn=0.1 * number)
        for name, values in zip(names, (data, data[::-1], data > 800), strict=True):
            write_scan(root / name, values.astype(np.int16), matrix)
        rows.append(",".join([*names, subject]))
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.csv").write_text("value,name\n1,lesion\n")
    return root / "table.csv"


@pytest.mark.parametrize("bids", [None, ("T1w",)])
def test_where_no_scan_can_be_converted_nothing_is_written(tmp_path, bids):
    for name in "ab":
        path = tmp_path / "scans" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(blob((20, 17)).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"none of 2 scans could be converted.*is a picture"):
        selfvox.convert(tmp_path / "scans", out=tmp_path / "out", bids=bids)
    assert not (tmp_path / "out").exists()


def test_a_bids_folder_is_read_back_with_subjects_sessions_and_labels(tmp_path):
    table = write_labelled(tmp_path / "scans", "p_1", "p_2", "p_1")
    out = tmp_path / "bids"
    files = selfvox.convert(table, out=out, bids=("T1w", "FLAIR"))
    assert len(files) == 6
    original = find_dataset(table)
    for suffix, channel in (("T1w", 0), ("FLAIR", 1)):
        dataset = find_dataset(out, f"bids:{suffix},dseg")
        assert "3 of 3 scans have a label" in dataset.notes
        assert not any("participants" in note for note in dataset.notes)
        assert [(case.id, case.subject) for case in dataset.cases] == [
            (f"sub-p1_ses-01_{suffix}", "sub-p1"),
            (f"sub-p1_ses-02_{suffix}", "sub-p1"),
            (f"sub-p2_ses-01_{suffix}", "sub-p2"),
        ]
        expected = [case for subject in ("p_1", "p_2") for case in original.cases
                    if case.subject == subject]  # fmt: skip
        for case, source in zip(dataset.cases, expected, strict=True):
            before, after = read_case(source, 2), read_case(case, 1)
            np.testing.assert_array_equal(after.data[0], before.data[channel])
            np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
            label = np.asarray(nib.load(source.label).dataobj)
            np.testing.assert_array_equal(np.asarray(nib.load(case.label).dataobj), label)
    assert (out / "derivatives" / "labels" / "dseg.tsv").read_text() == (
        "index\tname\n0\tbackground\n1\tlesion\n"
    )
    for folder, kind in ((out, "raw"), (out / "derivatives" / "labels", "derivative")):
        description = json.loads((folder / "dataset_description.json").read_text())
        assert description["DatasetType"] == kind
    assert not any(b"DOE^JANE" in content_of(path) for path in out.rglob("*") if path.is_file())


def test_a_dicom_series_becomes_a_bids_folder_without_the_person(tmp_path):
    slices = series(PatientName="KANARIA^ANNA", PatientID="KANARIA-7", StudyDescription="KANARIA")
    save(tmp_path / "dicom", slices)
    selfvox.convert(tmp_path / "dicom", out=tmp_path / "out", bids=("T1w",))
    (case,) = find_dataset(tmp_path / "out").cases
    (scan,) = find_dataset(tmp_path / "dicom").cases
    np.testing.assert_array_equal(read_case(case, 1).data, read_case(scan, 1).data)
    for path in (tmp_path / "out").rglob("*"):
        assert CANARY.decode() not in str(path.relative_to(tmp_path))
        assert path.is_dir() or CANARY not in content_of(path)
    participants = (tmp_path / "out" / "participants.tsv").read_text().split()
    assert participants == ["participant_id", case.subject]


@pytest.mark.parametrize(
    ("subjects", "suffixes", "message"),
    [
        (("a", "b"), ("T1w",), "scans have 2 channels (t1, flair); give one suffix for each"),
        (("a", "b"), ("T1w", "T1w"), "give one suffix for each"),
        (("a", "b"), ("T1w", "../x"), "'../x' is no suffix of BIDS"),
        (("a_1", "a1"), ("T1w", "FLAIR"), "the subject a_1 cannot be called sub-a1"),
    ],
)
def test_names_that_bids_does_not_allow_are_refused(tmp_path, subjects, suffixes, message):
    table = write_labelled(tmp_path / "scans", *subjects)
    with pytest.raises(UsageError, match=re.escape(message)):
        selfvox.convert(table, out=tmp_path / "bids", bids=suffixes)
    assert not (tmp_path / "bids").exists()


def test_scans_without_a_label_are_no_training_scans_of_nnunet(tmp_path):
    for number in range(3):
        data = blob((20, 17, 12), number)
        write_scan(tmp_path / "scans" / "images" / f"s{number}.nii.gz", data)
        if number:
            label = (data > 800).astype(np.uint8)
            write_scan(tmp_path / "scans" / "labels" / f"s{number}.nii.gz", label)
    out = tmp_path / "out"
    selfvox.convert(tmp_path / "scans", out=out)
    names = {str(path.relative_to(out)) for path in out.rglob("*.nii.gz")}
    assert names == {
        "imagesTs/s0_0000.nii.gz",
        *(f"imagesTr/s{number}_0000.nii.gz" for number in (1, 2)),
        *(f"labelsTr/s{number}.nii.gz" for number in (1, 2)),
    }
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 2
    # read back, none is lost
    assert {case.id for case in find_dataset(out).cases} == {"s0", "s1", "s2"}
