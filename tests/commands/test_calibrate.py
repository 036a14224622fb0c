"""A calibration measures what `predict` writes, and `predict` and `evaluate` say what it found."""

import base64
import csv
import dataclasses
import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import selfvox
from selfvox.commands import finetune
from selfvox.data import phantom
from selfvox.data.preparation.leakage import seen_scans
from selfvox.data.preparation.likeness import CoarsePictures
from selfvox.data.preparation.store import open_store
from selfvox.data.sources import find_dataset
from selfvox.errors import UsageError
from selfvox.prediction import calibrate_run, labelled_scans
from selfvox.prediction.load_model import load_model
from selfvox.runs.typed_json import write_checked
from selfvox.settings.verbs import Finetune
from selfvox.uncertainty.calibration import Calibration
from selfvox.uncertainty.calibration_file import read_calibration

from ..conftest import blob, make_run, write_scan

HOW = {"passes": 3, "device": "cpu", "precision": "fp32"}


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate") / "scans"
    phantom.write(folder, "shapes", count=4)
    return folder


@pytest.fixture
def run(tmp_path, shapes_store):
    """A network of random weights with the recipe and the classes of the shapes."""
    store = open_store(shapes_store)
    classes = {str(value): name for value, name in store.classes.items()}
    run = make_run(tmp_path / "run", classes=classes)
    card = json.loads((run / "network" / "network.json").read_text())
    card["recipe"] = store.recipe.to_dict()
    write_checked(run / "network" / "network.json", card)
    return run


def test_it_measures_what_predict_writes_and_predict_says_what_it_found(
    run, scans, tmp_path, capsys
):
    file = selfvox.calibrate(run, scans, **HOW)
    assert "intervals of the volume contain the truth of 80 %" in " ".join(
        capsys.readouterr().err.split()
    )
    calibration = read_calibration(run, Calibration)
    assert (calibration.subjects, calibration.level) == (4, 0.8)
    selfvox.predict(run, scans, out=tmp_path / "out", **HOW)
    said = " ".join(capsys.readouterr().err.split())
    assert "for each class, the intervals of the volume contain the truth of 80 % of such" in said
    assert "the ranges of Dice that of about as many (calibrated on 4 subjects" in said
    rows = selfvox.evaluate(tmp_path / "out", scans, out=tmp_path / "scores.csv")
    said = " ".join(capsys.readouterr().err.split())
    assert "predicted Dice of 4 scans" in said
    assert "80 % intervals: " in said
    reviews = {row["case"]: row for row in table(tmp_path / "out" / "review.csv")}
    scores = {(row["case"], row["name"]): row for row in rows}
    measures = table(file.with_suffix(".csv"))
    assert len(measures) == len(scores) > 0
    inside = 0
    for measure in measures:
        review = reviews[measure["case"]]
        name = measure["name"]
        score = scores[measure["case"], name]
        assert measure["agreement"] == review[f"{name} agreement"]
        assert measure["volume"] == review[f"{name} ml"]
        assert float(measure["dice"]) == pytest.approx(score["dice"], abs=1e-5)
        volumes = [float(measure["true_volume"]), score["true_volume_ml"]]
        assert volumes[0] == pytest.approx(volumes[1], rel=1e-4)
        assert float(measure["volume"]) == pytest.approx(score["predicted_volume_ml"], rel=1e-4)
        low, high = (float(review[f"{name} {end}"]) for end in ("low", "high"))
        inside += low <= volumes[0] * (1 + 1e-4) and volumes[0] <= high * (1 + 1e-4)
    # of the scans it was fitted on, the interval holds the largest error
    assert inside == len(measures)
    predicted = [float(row["predicted dice"]) for row in table(tmp_path / "out" / "review.csv")]
    assert predicted == sorted(predicted)


def test_without_a_calibration_predict_says_so_and_calls_nothing_an_interval(run, tmp_path, capsys):
    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)))
    selfvox.predict(run, scan, out=tmp_path / "out", **HOW)
    said = " ".join(capsys.readouterr().err.split())
    assert f"since {run} has no calibration; `selfvox calibrate {run}` makes one" in said
    (row,) = table(tmp_path / "out" / "review.csv")
    assert not [name for name in row if name.endswith((" low", " high")) and "spread" not in name]


def test_by_default_the_validation_subjects_calibrate(run, shapes_store, capsys):
    subjects = [case.subject for case in open_store(shapes_store).cases]
    split = {"train": subjects[:4], "validation": subjects[4:7], "test": subjects[7:], "seed": 0}
    with pytest.raises(UsageError, match="has no store of its scans; name labelled scans"):
        selfvox.calibrate(run, **HOW)
    os.symlink(shapes_store, run / "store")
    (run / "split.json").write_text(json.dumps({**split, "validation": [], "test": []}))
    with pytest.raises(UsageError, match="has no validation subjects; name labelled scans"):
        selfvox.calibrate(run, **HOW)
    (run / "split.json").write_text(json.dumps({**split, "validation": subjects[4:6]}))
    with pytest.raises(UsageError, match=r"scans of 2 subjects .* and a calibration needs 3"):
        selfvox.calibrate(run, **HOW)
    (run / "split.json").write_text(json.dumps(split))
    file = selfvox.calibrate(run, **HOW)
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == set(subjects[4:7])
    # named scans are used without the subjects that trained or that test
    capsys.readouterr()
    selfvox.calibrate(run, shapes_store, **HOW)
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == set(subjects[4:7])
    said = " ".join(capsys.readouterr().err.split())
    assert "left out of 8 labelled scans: 4 that trained the run, 1 of its test subjects" in said


def test_labels_of_resampled_scans_are_read_from_their_files(run, scans, tmp_path):
    selfvox.prepare(scans, out=tmp_path / "store", spacing=(2, 2, 2), workers=1)
    store = open_store(tmp_path / "store")
    card = json.loads((run / "network" / "network.json").read_text())
    card["recipe"] = store.recipe.to_dict()
    write_checked(run / "network" / "network.json", card)
    subjects = [case.subject for case in store.cases]
    split = {"train": [], "validation": subjects, "test": [], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    os.symlink(tmp_path / "store", run / "store")
    for named in (None, tmp_path / "store"):
        with pytest.raises(UsageError, match=r"were resampled.*name the scans and label files"):
            selfvox.calibrate(run, named, **HOW)
    file = selfvox.calibrate(run, scans, **HOW)
    # the volumes are those of the files
    measured = {
        (row["case"], row["name"]): row["true_volume"] for row in table(file.with_suffix(".csv"))
    }
    names = {name: value for value, name in store.classes.items()}
    for case in find_dataset(scans).cases:
        label = nib.load(case.label)
        voxel_ml = np.prod(label.header.get_zooms()) / 1000
        for name, value in names.items():
            if value:
                volume = np.count_nonzero(np.asarray(label.dataobj) == value) * voxel_ml
                assert float(measured[case.id, name]) == pytest.approx(volume, rel=1e-4)


def test_a_run_of_folds_is_calibrated_by_the_store_that_the_folds_share(
    run, shapes_store, tmp_path
):
    subjects = [case.subject for case in open_store(shapes_store).cases]
    fold = tmp_path / "folds" / "fold_1"
    shutil.copytree(run, fold)
    os.symlink(shapes_store, fold.parent / "store")
    split = {"train": subjects[:4], "validation": subjects[4:7], "test": subjects[7:], "seed": 0}
    (fold / "split.json").write_text(json.dumps(split))
    # any other run next to a store was not trained on it
    (fold / "settings.yaml").write_text("labelled: scans\nfolds: null\n")
    with pytest.raises(UsageError, match="has no store of its scans"):
        selfvox.calibrate(fold, **HOW)
    (fold / "settings.yaml").write_text("labelled: scans\nfolds: 2\n")
    file = selfvox.calibrate(fold, **HOW)
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == set(subjects[4:7])


def test_scans_that_trained_or_test_are_recognised_under_other_names(run, shapes_store, tmp_path):
    scans = shapes_store.parent / "scans"
    cases = {case.subject: case for case in open_store(shapes_store).cases}
    subjects = list(cases)
    split = {"train": subjects[:2], "validation": subjects[3:5], "test": subjects[5:6], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    os.symlink(shapes_store, run / "store")
    # the third subject gave its anatomy to a copy, or has a pseudo-label
    data = seen_scans([cases[subject] for subject in subjects[:5]])
    (run / "run.json").write_text(json.dumps({"verb": "finetune", "data": data}))
    renamed = [
        dataclasses.replace(case, id=f"new_{case.id}", subject=f"new_{case.subject}")
        for case in find_dataset(scans).cases
    ]
    for listed in (find_dataset(scans).cases, renamed):
        dataset = dataclasses.replace(find_dataset(scans), cases=listed)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(labelled_scans, "find_dataset", lambda *_, found=dataset: found)
            unseen = labelled_scans.unseen_scans([run], scans, "auto", [load_model(run)])[0]
        left = {scan.subject.removeprefix("new_") for scan in unseen}
        assert left == {*subjects[3:5], *subjects[6:]}
    unseen = labelled_scans.unseen_scans([run], shapes_store, "auto", [load_model(run)])[0]
    assert {scan.subject for scan in unseen} == {*subjects[3:5], *subjects[6:]}


def test_a_training_scan_is_recognised_by_its_voxels_in_a_renamed_and_recompressed_file(
    run, shapes_store, tmp_path, capsys
):
    store = open_store(shapes_store)
    subjects = [case.subject for case in store.cases]
    split = {"train": subjects[:2], "validation": [], "test": [], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    data = seen_scans(store.cases[:2])
    (run / "run.json").write_text(json.dumps({"verb": "finetune", "data": data}))
    for kind in ("images", "labels"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
    rows = ["image,label,subject"]
    for number, case in enumerate(find_dataset(shapes_store.parent / "scans").cases[:5]):
        row = []
        for kind, path in (("images", case.images[0]), ("labels", case.label)):
            row.append(f"{kind}/new_{number}.nii")
            # not compressed any more
            (tmp_path / "scans" / row[-1]).write_bytes(gzip.decompress(path.read_bytes()))
        rows.append(",".join([*row, f"new_{number}"]))
    (tmp_path / "scans" / "table.csv").write_text("\n".join(rows) + "\n")
    file = selfvox.calibrate(run, tmp_path / "scans", **HOW)
    printed = " ".join(capsys.readouterr().err.split())
    assert "left out of 5 labelled scans: 2 that trained the run" in printed
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == {
        "new_2",
        "new_3",
        "new_4",
    }


def write_blobs(folder, name, edge):
    """Smooth noise in a ball, on a grid of `edge` voxels, with its bright part as label."""
    noise = np.random.default_rng(ord(name)).normal(size=(48,) * 3)
    fine = ndimage.gaussian_filter(noise, 5)
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    ball = np.sqrt(sum(axis**2 for axis in axes)) < 0.9
    scan = ndimage.zoom((fine / fine.std() + 3) * ball, edge / 48, order=1)
    affine = np.diag([48 / edge, 48 / edge, 48 / edge, 1])
    for kind, data in (("images", scan), ("labels", (scan > 4).astype(np.uint8))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(
            nib.Nifti1Image(data.astype(np.float32 if kind == "images" else np.uint8), affine),
            folder / kind / f"{name}-{edge}.nii.gz",
        )


def write_table(folder, edge, names):
    """A table of new subjects with these scans."""
    rows = ["image,label,subject"]
    for name in names:
        write_blobs(folder, name, edge)
        rows.append(f"images/{name}-{edge}.nii.gz,labels/{name}-{edge}.nii.gz,{name}-{edge}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def test_a_resampled_copy_of_a_training_or_test_scan_does_not_calibrate(tmp_path, capsys):
    write_table(tmp_path / "first", 40, "abc")
    selfvox.prepare(tmp_path / "first" / "table.csv", out=tmp_path / "store", workers=1)
    store = open_store(tmp_path / "store")
    run = make_run(tmp_path / "run", classes={"0": "background", "1": "bright"})
    card = json.loads((run / "network" / "network.json").read_text())
    write_checked(run / "network" / "network.json", {**card, "recipe": store.recipe.to_dict()})
    split = {"train": ["a-40", "b-40"], "validation": [], "test": ["c-40"], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    os.symlink(tmp_path / "store", run / "store")
    data = seen_scans(store.cases[:2])
    (run / "run.json").write_text(json.dumps({"verb": "finetune", "data": data}))
    # the same heads in other voxels under other names, and three others
    write_table(tmp_path / "second", 32, "abcxyz")
    file = selfvox.calibrate(run, tmp_path / "second" / "table.csv", **HOW)
    expected = "left out of 6 labelled scans: 2 that trained the run, 1 of its test"
    assert expected in " ".join(capsys.readouterr().err.split())
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == {"x-32", "y-32", "z-32"}


def test_a_validation_scan_that_is_a_copy_of_a_training_scan_does_not_calibrate(
    run, shapes_store, capsys
):
    cases = open_store(shapes_store).cases
    subjects = [case.subject for case in cases]
    split = {"train": subjects[:2], "validation": subjects[2:6], "test": [], "seed": 0}
    (run / "split.json").write_text(json.dumps(split))
    # the third subject's scan was trained on under another name, in another resolution
    data = seen_scans(cases[:6])
    picture = CoarsePictures([cases[2].coarse_picture])
    flipped = base64.b64encode(b"\0" + base64.b64decode(cases[2].coarse_picture)[1:]).decode()
    assert picture.find(flipped) == 0
    data["coarse_pictures"] = [*data["coarse_pictures"], flipped]
    (run / "run.json").write_text(json.dumps({"verb": "finetune", "data": data}))
    os.symlink(shapes_store, run / "store")
    file = selfvox.calibrate(run, **HOW)
    assert {row["subject"] for row in table(file.with_suffix(".csv"))} == set(subjects[3:6])
    assert "left out of 4 labelled scans: 1 that trained the run" in " ".join(
        capsys.readouterr().err.split()
    )


def test_each_scan_is_given_to_one_network_that_has_not_seen_it():
    scans = [labelled_scans.LabelledScan(name, name, lambda: None) for name in "abcdefgh"]
    # the first network has not seen the first six, the second not the last four
    first, second = labelled_scans._one_network_each([scans[:6], scans[4:]])
    names = [[scan.case for scan in of_network] for of_network in (first, second)]
    assert sorted(names[0] + names[1]) == list("abcdefgh")
    assert (set(names[0]), set(names[1])) == (set("abcd"), set("efgh"))


def test_of_many_scans_no_subject_is_dropped_before_the_further_scans_of_others():
    # 98 scans of one subject before those of two others
    subjects = ["a"] * 98 + ["b", "c"]
    scans = [
        labelled_scans.LabelledScan(f"{number}", subject, lambda: None)
        for number, subject in enumerate(subjects)
    ]
    scans.insert(1, labelled_scans.LabelledScan("d", "d", lambda: None))
    chosen = calibrate_run._spread_scans(scans, 50)
    assert len({scan.case for scan in chosen}) == 50
    assert {scan.subject for scan in chosen} == set("abcd")
    # of more subjects than scans, one scan of each
    assert len({scan.subject for scan in calibrate_run._spread_scans(scans, 3)}) == 3


@pytest.mark.parametrize(("spacing", "command"), [(None, "{run}"), ((2, 2, 2), "{run} {scans}")])
def test_finetune_prints_a_command_that_finds_labels_on_the_scans_own_grids(
    spacing, command, scans, tmp_path, capsys
):
    selfvox.prepare(scans, out=tmp_path / "store", spacing=spacing, workers=1)
    settings = Finetune(labelled=scans, encoder="none", out=tmp_path / "run")
    cases = open_store(tmp_path / "store").cases
    finetune._suggest_calibrate(settings, tmp_path / "run", cases)
    printed = "".join(capsys.readouterr().err.split())
    expected = command.format(run=tmp_path / "run", scans=scans)
    assert printed.endswith(f"selfvoxcalibrate{expected}".replace(" ", ""))


def test_passes_without_dropout_are_refused(run):
    with pytest.raises(UsageError, match=r"^passes: all passes would be equal without dropout"):
        selfvox.calibrate(run, encoder_dropout=0, decoder_dropout=0)
