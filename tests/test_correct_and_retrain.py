"""The commands of the page docs/how-to/correct-and-retrain.md, in their order, on small scans."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from selfvox.data import phantom
from selfvox.data.preparation.split import read_split

from .test_journey import NETWORK, selfvox
from .test_readme import selfvox_commands

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "correct-and-retrain.md"
SMALL = {"20": "2", "10": "1"}  # passes, scans that test and validate, suggested ones
CROP = ("--crop", "16,16,16", "--device", "cpu")
OPTIONS = {
    "predict": ("--device", "cpu"),
    "embed": ("--device", "cpu"),
    "prepare": ("--workers", "1"),
    "finetune": ("--steps", "4", *CROP),
    "suggest": ("--out", "suggested.csv"),
}


def rows_of(table):
    with table.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_corrected_labels_train_and_the_same_subjects_are_scored(tmp_path):
    phantom.write(tmp_path / "labelled", "shapes", count=6)
    phantom.write(tmp_path / "truth", "shapes", count=9)
    (tmp_path / "new_scans").mkdir()
    new = ["sub-007", "sub-008", "sub-009"]
    for name in new:
        shutil.copy(tmp_path / "truth" / "images" / f"{name}.nii.gz", tmp_path / "new_scans")

    def run(words):
        small = [SMALL.get(word, word) for word in words]
        return selfvox(*small, *OPTIONS.get(words[0], ()), cwd=tmp_path)

    # what the page begins with
    commands = {}
    for words in selfvox_commands(PAGE):
        commands.setdefault(words[0], []).append(words)
    (prepare,) = commands["prepare"]
    run(["prepare", "labelled/", *prepare[2:]])
    pretrain = ("pretrain", "store", "--out", "runs/pretrained", "--steps", "2", "--batch", "2")
    selfvox(*pretrain, *CROP, *NETWORK[:-2], cwd=tmp_path)
    run(["finetune", "store/", "--encoder", "runs/pretrained", "--out", "runs/seg"])
    test = read_split(tmp_path / "store" / "split.json").test
    assert len(test) == 2

    predict_new, predict_test = commands["predict"]
    run(predict_new)
    run(commands["embed"][0])
    run(commands["suggest"][0])
    (suggested,) = [row["id"] for row in rows_of(tmp_path / "suggested.csv")]
    assert suggested in new
    truth = np.asarray(nib.load(tmp_path / "truth" / "labels" / f"{suggested}.nii.gz").dataobj)
    file = tmp_path / "predictions" / f"{suggested}.nii.gz"
    prediction = nib.load(file)
    corrected = truth.astype(np.uint8)
    nib.save(nib.Nifti1Image(corrected, prediction.affine, prediction.header), file)
    run(commands["correct"][0])
    run(prepare)
    run(commands["finetune"][-1])
    split = read_split(tmp_path / "runs" / "seg-2" / "split.json")
    assert suggested in split.train
    assert split.test == test
    run(predict_test)
    run(commands["evaluate"][0])
    rows = [row for row in rows_of(tmp_path / "scores-2.csv") if row["case"] in test]
    assert {row["case"] for row in rows} == set(test)
    for row in rows:
        file = f"{row['case']}.nii.gz"
        value = int(row["class"])
        label = np.asarray(nib.load(tmp_path / "labelled" / "labels" / file).dataobj) == value
        answer = np.asarray(nib.load(tmp_path / "predictions-2" / file).dataobj) == value
        voxels = label.sum() + answer.sum()
        dice = 2 * (label & answer).sum() / voxels if voxels else 1.0
        np.testing.assert_allclose(float(row["dice"]), dice, atol=1e-4)
