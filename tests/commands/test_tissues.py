"""The command `tissues`, on balls of three shells of known brightness."""

import csv

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data.sources import Case, Dataset, find_dataset
from selfvox.errors import DataError, UsageError

pytest.importorskip("dipy")
from selfvox.commands import tissues as verb


def shells(seed=0, noise=4.0):
    """A ball of three shells of known brightness, dark outside: the image, the truth, the ball."""
    rng = np.random.default_rng(seed)
    centre = (np.indices((24, 26, 28)).T - (12, 13, 14)).T
    radius = np.sqrt((centre**2).sum(0))
    truth = np.select([radius < 5, radius < 8, radius < 11], [3, 2, 1], 0).astype(np.uint8)
    image = np.choose(truth, [0, 60, 120, 180]) + noise * rng.standard_normal(truth.shape) * (
        truth > 0
    )
    return image.astype(np.float32), truth


@pytest.fixture
def scans(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    (tmp_path / "scans").mkdir()
    for number in range(2):
        nib.Nifti1Image(shells(number)[0], affine).to_filename(
            tmp_path / "scans" / f"head{number}.nii.gz"
        )
    return tmp_path / "scans"


def test_shells_of_known_brightness_are_separated_and_the_same_each_time():
    image, truth = shells()
    label = verb.classify(image, truth > 0)
    assert (label == truth).mean() > 0.99
    assert np.array_equal(label, verb.classify(image, truth > 0))


def count_single_voxels(label):
    """How many voxels differ from all six neighbours."""
    inner = (slice(1, -1),) * 3
    equal_neighbours = [
        np.roll(label, step, axis)[inner] == label[inner] for axis in range(3) for step in (1, -1)
    ]
    return int((~np.any(equal_neighbours, axis=0) & (label[inner] > 0)).sum())


def test_the_random_field_corrects_single_voxels_that_noise_has_changed(monkeypatch):
    image, truth = shells(noise=24.0)
    smooth = verb.classify(image, truth > 0)
    monkeypatch.setattr(verb, "SMOOTHING", 0.0)
    rough = verb.classify(image, truth > 0)
    assert count_single_voxels(smooth) < 0.7 * count_single_voxels(rough)


def test_brightness_scale_and_offset_do_not_matter():
    image, truth = shells()
    assert np.array_equal(
        verb.classify(image, truth > 0), verb.classify(7 * image - 300, truth > 0)
    )


def test_labels_are_on_the_grid_of_the_scan_and_their_table_can_be_fine_tuned_on(scans, tmp_path):
    table = selfvox.tissues(scans, out=tmp_path / "labelled")
    dataset = find_dataset(table)
    assert [case.subject for case in dataset.cases] == ["head0", "head1"]
    for number, case in enumerate(dataset.cases):
        label = nib.load(case.label)
        assert np.array_equal(label.affine, nib.load(case.images[0]).affine)
        truth = shells(number)[1]
        assert (np.asarray(label.dataobj) == truth).mean() > 0.95
    assert (tmp_path / "labelled" / "check.png").stat().st_size > 1000
    run = selfvox.finetune(
        table,
        out=tmp_path / "run",
        encoder="none",
        labels=1,
        steps=2,
        crop=(16, 16, 16),
        device="cpu",
        network={"name": "plain", "channels": [4, 8]},
    )
    assert (run / "network" / "network.json").exists()


def test_existing_labels_are_kept(scans, tmp_path):
    table = selfvox.tissues(scans, out=tmp_path / "labelled")
    first = tmp_path / "labelled" / "labels" / "head0.nii.gz"
    time_of_label = first.stat().st_mtime_ns
    assert selfvox.tissues(scans, out=tmp_path / "labelled") == table
    assert first.stat().st_mtime_ns == time_of_label


def test_labels_of_another_scan_are_refused_whatever_it_is_called(scans, tmp_path):
    selfvox.tissues(scans, out=tmp_path / "labelled")
    other_scan = nib.Nifti1Image(shells(7)[0], np.diag([2.0, 2.0, 2.0, 1.0]))  # on the same grid
    other_scan.to_filename(scans / "head1.nii.gz")
    with pytest.raises(
        UsageError, match="contains the label of another scan named head1; name another `out`"
    ):
        selfvox.tissues(scans, out=tmp_path / "labelled")
    (tmp_path / "labelled" / "labels" / "head1.nii.gz").unlink()
    for _ in range(2):  # removed, it is made of the new scan, and known as that from then on
        selfvox.tissues(scans, out=tmp_path / "labelled")
    label = np.asarray(nib.load(tmp_path / "labelled" / "labels" / "head1.nii.gz").dataobj)
    assert (label == shells(7)[1]).mean() > 0.95


def test_a_label_of_unknown_origin_must_be_on_the_grid_of_its_scan(
    scans, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(verb, "SHOWN", 0)
    (tmp_path / "labelled" / "labels").mkdir(parents=True)
    truth = shells(0)[1]
    for number, extent in enumerate((2.0, 3.0)):
        label = nib.Nifti1Image(truth, np.diag([extent, 2.0, 2.0, 1.0]))
        label.to_filename(tmp_path / "labelled" / "labels" / f"head{number}.nii.gz")
    with pytest.raises(DataError, match="1 of 2 scans"):
        selfvox.tissues(scans, out=tmp_path / "labelled")
    assert "head1.nii.gz" in capsys.readouterr().err
    kept_label = nib.load(tmp_path / "labelled" / "labels" / "head0.nii.gz")
    assert np.array_equal(np.asarray(kept_label.dataobj), truth)


def test_a_scan_that_cannot_be_labelled_is_named_and_the_others_are_done(scans, tmp_path, capsys):
    nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)).to_filename(scans / "black.nii.gz")
    with pytest.raises(DataError, match="1 of 3 scans"):
        selfvox.tissues(scans, out=tmp_path / "labelled")
    assert "black.nii.gz" in capsys.readouterr().err
    with (tmp_path / "labelled" / "table.csv").open() as lines:
        assert [row["subject"] for row in csv.DictReader(lines)] == ["head0", "head1"]


@pytest.mark.parametrize(
    ("root", "reason"),
    [("dicom", "cannot list DICOM series"), ("decathlon", "cannot list a file of 4 channels")],
)
def test_scans_that_a_table_cannot_list_are_refused_before_they_are_labelled(
    tmp_path, monkeypatch, root, reason
):
    """Such a table was once written after all the work, and could not be read."""
    images = tuple(tmp_path / f"{number}" for number in range(5 if root == "dicom" else 1))
    names = ("MR",) if root == "dicom" else ("FLAIR", "T1w", "t1gd", "T2w")
    dataset = Dataset(
        tmp_path, root, (Case("a", "a", images, stacked=root == "dicom"),), names, None
    )
    monkeypatch.setattr(verb, "find_dataset", lambda scans, source: dataset)
    with pytest.raises(DataError, match=reason):
        selfvox.tissues(tmp_path / "scans", out=tmp_path / "labelled")
    assert not (tmp_path / "labelled").exists()


def test_an_out_inside_the_scans_is_refused(scans):
    with pytest.raises(UsageError, match="is inside the folder of scans"):
        selfvox.tissues(scans, out=scans / "labelled")
