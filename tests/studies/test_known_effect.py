"""Studies whose truth is known: two equal arms differ by nothing, and an effect put in is found."""

import csv

import nibabel as nib
import numpy as np
import pytest
import yaml

import selfvox
from selfvox.data import phantom
from selfvox.studies import figures

LABELS = (1, 2)
SEEDS = (0, 1, 2, 3, 4)
EFFECT = 0.05  # Dice
# standard deviations of Dice: a draw of labels, a subject, and everything else
DRAW, SUBJECT, REST = 0.012, 0.03, 0.01


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known") / "scans"
    phantom.write(folder, "shapes", count=16)
    return folder


def with_dice(truth, dice, rng):
    """A label whose Dice is `dice` in each class: a share of its voxels is taken away."""
    label = truth.copy()
    for value in np.unique(truth[truth > 0]):
        where = np.flatnonzero(truth == value)
        # Dice of a part with share s of the voxels is 2 s / (1 + s)
        kept = round(dice / (2 - dice) * len(where))
        label.flat[rng.permutation(where)[kept:]] = 0
    return label


def write_arm(folder, truth_of, level, rng, subjects):
    """Predictions of an arm: its own luck with each draw, and subjects that all arms share."""
    for labels in LABELS:
        for seed in SEEDS:
            draw = rng.normal(0, DRAW)
            to = folder / str(labels) / str(seed)
            to.mkdir(parents=True)
            for name, (truth, affine) in truth_of.items():
                dice = level + draw + subjects[name] + rng.normal(0, REST)
                label = with_dice(truth, min(dice, 1.0), rng).astype(np.uint8)
                nib.save(nib.Nifti1Image(label, affine), to / f"{name}.nii.gz")


def test_equal_arms_do_not_differ_and_an_effect_is_found(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *arguments: [])  # takes seconds
    rng = np.random.default_rng(3)
    truth_of = {}
    for file in sorted((scans / "labels").iterdir()):
        image = nib.load(file)
        truth_of[file.name.removesuffix(".nii.gz")] = (np.asarray(image.dataobj), image.affine)
    subjects = {name: rng.normal(0, SUBJECT) for name in truth_of}
    levels = {"reference": 0.8, "equal": 0.8, "better": 0.8 + EFFECT}
    for name, level in levels.items():
        write_arm(tmp_path / name, truth_of, level, rng, subjects)
    methods = {name: {"predictions": f"{tmp_path / name}/{{labels}}/{{seed}}"} for name in levels}
    plan = {
        "data": str(scans),
        "test": 12,
        "validation": 1,
        "labels": list(LABELS),
        "methods": methods,
        "against": ["reference"],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    selfvox.study(str(tmp_path / "plan.yaml"), out=tmp_path / "out")
    with (tmp_path / "out/comparisons.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["name"] == "mean of classes"]
    assert len(rows) == 4
    for row in rows:
        low, high = (float(row[f"{end}_simultaneous"]) for end in ("low", "high"))
        if row["method"] == "equal":
            assert low < 0 < high
            assert abs(float(row["difference"])) < 0.01
        else:
            assert 0 < low < EFFECT < high
        # narrow enough to say something
        assert high - low < 0.07
