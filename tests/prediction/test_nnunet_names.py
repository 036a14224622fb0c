"""Scans that nnU-Net could predict are predicted under the names that nnU-Net would give them."""

import shutil

import pytest

from selfvox.commands.predict import predict
from selfvox.errors import DataError
from selfvox.settings.verbs import Predict

from ..conftest import blob, make_run, write_scan


@pytest.fixture
def run_of_two(tmp_path):
    return make_run(tmp_path / "run2", channel_names=("T1", "FLAIR"))


def write_channels(folder, *names):
    for seed, name in enumerate(names):
        write_scan(folder / f"{name}.nii.gz", blob((20, 17, 12), seed))
    return folder


def names_of(paths):
    return [path.name for path in paths]


def test_files_of_several_channels_are_one_case_as_in_imagests(run_of_two, tmp_path):
    scans = write_channels(tmp_path / "scans", "a_0000", "a_0001", "b 7_0000", "b 7_0001")
    paths = predict(Predict(run=run_of_two, scans=scans, out=tmp_path / "out"))
    assert names_of(paths) == ["a.nii.gz", "b 7.nii.gz"]
    shutil.copytree(scans, tmp_path / "raw" / "imagesTs")
    same = predict(Predict(run=run_of_two, scans=tmp_path / "raw", out=tmp_path / "same"))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in same]


def test_a_case_that_lacks_a_channel_is_named(run_of_two, tmp_path):
    scans = write_channels(tmp_path / "scans", "a_0000", "a_0001", "b_0001")
    with pytest.raises(DataError, match=r"b: has no file _0000 of its 2 channels"):
        predict(Predict(run=run_of_two, scans=scans, out=tmp_path / "out"))
    with pytest.raises(DataError, match=r"a: has no file _0001 of its 2 channels"):
        predict(Predict(run=run_of_two, scans=scans / "a_0000.nii.gz", out=tmp_path / "out"))


@pytest.mark.fault("H7", "`predict` of `CASE_0000` files", "predictions named `CASE`, as the truth")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_0000", "b_0000"], ["a", "b"]),
        # scans that are merely numbered
        (["scan_0000", "scan_0001"], ["scan_0000", "scan_0001"]),
        (["a_0000", "b"], ["a_0000", "b"]),
    ],
)
def test_of_one_channel_the_suffix_goes_where_all_files_have_it(run, tmp_path, names, expected):
    scans = write_channels(tmp_path / "scans", *names)
    paths = predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert names_of(paths) == [f"{name}.nii.gz" for name in expected]


def test_cases_of_one_name_in_two_folders_stay_apart(run, tmp_path):
    write_channels(tmp_path / "scans" / "one", "a_0000")
    write_channels(tmp_path / "scans" / "two", "a_0000")
    paths = predict(Predict(run=run, scans=tmp_path / "scans", out=tmp_path / "out"))
    assert names_of(paths) == ["one_a.nii.gz", "two_a.nii.gz"]
