import csv

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store
from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.prediction import carry_labels
from selfvox.prediction.carry_labels import AtlasPredictions, CarriedLabels
from selfvox.registration.registered_pairs import read_label


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three people with labels; class 1 is on the same side in all (see test_copies)."""
    folder = tmp_path_factory.mktemp("atlas") / "scans"
    phantom.write(folder, "shapes", count=3, seed=9)
    return folder


@pytest.fixture
def moved(monkeypatch):
    """The number of registrations."""
    count = [0]
    original = carry_labels.register.register

    def register(*arguments):
        count[0] += 1
        return original(*arguments)

    monkeypatch.setattr(carry_labels.register, "register", register)
    return count


def test_labels_of_the_other_people_vote_on_the_grid_of_each_scan(scans, tmp_path, moved):
    out = tmp_path / "predictions"
    files = selfvox.atlas(scans, scans, out=out, workers=1)
    # three scans, each with the labels of the two others: never with its own
    assert moved == [6]
    for file in files:
        label = nib.load(file)
        image = nib.load(scans / "images" / file.name)
        np.testing.assert_allclose(label.affine, image.affine)
        assert label.shape == image.shape
    rows = selfvox.evaluate(out, scans)
    dice = [float(row["dice"]) for row in rows]
    assert len(dice) == 6
    assert np.mean(dice) > 0.75
    with (out / "review.csv").open() as table:
        trust = {row["case"]: float(row["trust"]) for row in csv.DictReader(table)}
    assert set(trust) == {"sub-001", "sub-002", "sub-003"}
    assert all(0.5 < value < 1 for value in trust.values())
    assert selfvox.atlas(scans, scans, out=out, workers=1) == files
    assert moved == [6]
    with pytest.raises(UsageError, match="atlases"):
        selfvox.atlas(scans, scans, out=out, atlases=1, workers=1)


def test_the_most_similar_labelled_scan_is_chosen_and_a_damaged_scan_named(
    scans, tmp_path, monkeypatch
):
    new = tmp_path / "new"
    new.mkdir()
    (new / "good.nii.gz").write_bytes((scans / "images" / "sub-003.nii.gz").read_bytes())
    (new / "torn.nii.gz").write_bytes((scans / "images" / "sub-002.nii.gz").read_bytes()[:900])
    likeness = iter([0.2, 0.9])
    monkeypatch.setattr(carry_labels.register, "similarity", lambda *_: next(likeness))
    chosen = []
    original = carry_labels.read_label
    monkeypatch.setattr(
        carry_labels,
        "read_label",
        lambda store, case: chosen.append(case.id) or original(store, case),
    )
    out = tmp_path / "predictions"
    with pytest.raises(DataError, match="1 of 2 scans could not be predicted"):
        selfvox.atlas(scans, new, out=out, atlases=1, workers=1)
    # the third scan is the new one itself, under another name
    assert chosen == ["sub-002"]
    assert (out / "good.nii.gz").exists()
    assert "torn" in (out / "rejected.csv").read_text()
    assert not (out / "review.csv").exists()  # a single atlas agrees with itself


def test_a_scan_compressed_again_under_another_name_does_not_vote_for_itself(
    scans, tmp_path, moved
):
    new = tmp_path / "new"
    new.mkdir()
    # the same voxels from right to left, in a file that is not compressed
    scan = nib.load(scans / "images" / "sub-002.nii.gz")
    scan.as_reoriented([[0, -1], [1, 1], [2, 1]]).to_filename(new / "copy.nii")
    selfvox.atlas(scans, new, out=tmp_path / "out", workers=1)
    assert moved == [2]


def test_a_scan_with_the_coarse_picture_of_an_atlas_does_not_get_its_label(scans, tmp_path, moved):
    new = tmp_path / "new"
    new.mkdir()
    scan = nib.load(scans / "images" / "sub-002.nii.gz")
    # other voxels, so that no hash is the same
    nib.save(nib.Nifti1Image(scan.get_fdata() * 1.01 + 1, scan.affine), new / "other.nii")
    selfvox.atlas(scans, new, out=tmp_path / "out", workers=1)
    assert moved == [2]


def test_shares_of_the_votes_are_resampled_and_then_decide(scans, tmp_path):
    selfvox.prepare(scans, out=tmp_path / "store", spacing=(2.3, 2.3, 2.3), workers=1)
    store = open_store(tmp_path / "store")
    labels = np.stack([np.roll(read_label(store, store.cases[0]), shift) for shift in (0, 1, 2)])
    geometry = store.cases[0].geometry
    carried = CarriedLabels(labels, geometry, store.cases[0].spacing_mm, ())
    case = find_dataset(scans).cases[0]
    (tmp_path / "out").mkdir()
    predictions = AtlasPredictions(tmp_path / "out", store, atlases=3)
    with predictions.folder.lock():
        predictions.folder.open([case], predictions.card, predictions.classes, store.regions)
        predictions.write(case, carried)
    written = np.asarray(nib.load(tmp_path / "out" / "sub-001.nii.gz").dataobj)
    shares = np.mean([labels == value for value in sorted(store.classes)], axis=1)
    expected = store.recipe.undo_probabilities(shares.astype(np.float32), geometry).argmax(0)
    np.testing.assert_array_equal(written, expected)
    hard_vote = store.recipe.undo(shares.argmax(0).astype(np.uint8), geometry)
    assert np.count_nonzero(hard_vote != expected) > 20


def test_scans_without_labels_cannot_be_carried(scans, tmp_path):
    with pytest.raises(DataError, match="neither labels nor grades"):
        selfvox.atlas(scans / "images", scans, out=tmp_path / "out", workers=1)
