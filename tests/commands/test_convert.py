"""`convert` keeps voxels and grid of a scan, and nothing of the person."""

import csv
import gzip
import json

import nibabel as nib
import numpy as np
import pytest

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
