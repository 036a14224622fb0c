"""Training on regions: from the declaration to labels on the scan's grid and their scores."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.errors import UsageError
from selfvox.models.sliding_window import segment_scan
from selfvox.uncertainty import maps

CROP = (16, 16, 16)
REGIONS = "whole=1,2;core=2"
HOW = {
    "encoder": "none",
    "network": {"name": "plain", "channels": [8, 16], "blocks": 1},
    "crop": CROP,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Six scans of a bright ball with a brighter core, class 1 and class 2."""
    root = tmp_path_factory.mktemp("balls")
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"))
    for number in range(6):
        centre = rng.uniform(8, 12, 3)[:, None, None, None]
        away = np.sqrt(((place - centre) ** 2).sum(0))
        label = ((away < 6).astype(np.uint8)) + (away < 3)
        image = (label * 2.0 + 1 + rng.normal(size=label.shape) * 0.1).astype(np.float32)
        for folder, values in (("images", image), ("labels", label.astype(np.uint8))):
            (root / folder).mkdir(exist_ok=True)
            nib.save(
                nib.Nifti1Image(values, np.diag([-1.0, -1, 1.5, 1])),
                root / folder / f"s{number}.nii.gz",
            )
    return root


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("regions") / "run"
    training = {"steps": 40, "batch": 2, "loss": "dice+ce", "keep": "last"}
    return selfvox.finetune(scans, out=out, regions=REGIONS, train_on="regions", **training, **HOW)


def test_the_network_has_an_output_for_each_region_and_says_so(run):
    card = json.loads((run / "network" / "network.json").read_text())
    assert card["regions"] == {"whole": [1, 2], "core": [2]}
    assert card["trained_on"] == "regions"
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(values for values in reversed(measured) if "dice_mean" in values)
    assert last["dice_mean"] == pytest.approx((last["dice_whole"] + last["dice_core"]) / 2)
    assert last["dice_whole"] > 0.7


@pytest.mark.parametrize("probabilities", [False, True])
def test_predictions_are_classes_and_their_regions_are_scored(scans, run, tmp_path, probabilities):
    selfvox.predict(
        run,
        scans,
        out=tmp_path / "out",
        device="cpu",
        precision="fp32",
        probabilities=probabilities,
    )
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == {
        "whole": [1, 2],
        "core": [2],
    }
    rows = selfvox.evaluate(tmp_path / "out", scans / "labels", out=tmp_path / "scores.csv")
    assert [(row["class"], row["name"]) for row in rows[:4]] == [
        (1, "class 1"),
        (2, "class 2"),
        ("1+2", "whole"),
        ("2", "core"),
    ]
    for number in range(6):
        predicted, reference = (
            np.asarray(nib.load(folder / f"s{number}.nii.gz").dataobj)
            for folder in (tmp_path / "out", scans / "labels")
        )
        assert set(np.unique(predicted)) <= {0, 1, 2}
        pairs = sum(a > 0 and b > 0 for a, b in zip(predicted.flat, reference.flat, strict=True))
        sizes = np.count_nonzero(predicted) + np.count_nonzero(reference)
        row_of_whole = next(
            row for row in rows if row["case"] == f"s{number}" and row["name"] == "whole"
        )
        assert row_of_whole["dice"] == pytest.approx(2 * pairs / sizes)
        assert row_of_whole["dice"] > 0.7
        assert row_of_whole["true_volume_ml"] == pytest.approx(
            np.count_nonzero(reference) * 1.5 / 1000
        )
    with (tmp_path / "scores.csv").open(newline="") as table:
        assert {row["class"] for row in csv.DictReader(table)} == {"1", "2", "1+2"}
    if probabilities:
        with (tmp_path / "scores_calibration.csv").open(newline="") as table:
            measured = {row["case"]: row for row in csv.DictReader(table)}
        assert len(measured) == 6
        truth = np.asarray(nib.load(scans / "labels" / "s0.nii.gz").dataobj)
        maps = nib.load(tmp_path / "out" / "s0_probabilities.nii.gz").get_fdata()
        assert maps.shape == (20, 20, 20, 2)
        label = np.asarray(nib.load(tmp_path / "out" / "s0.nii.gz").dataobj)
        assert np.array_equal(label == 2, maps[..., 1] > 0.5)
        values = [
            naive_brier(maps[..., place], truth >= least, truth > 0)
            for place, least in enumerate((1, 2))
        ]
        assert float(measured["s0"]["brier"]) == pytest.approx(np.mean(values), rel=1e-3)


def naive_brier(p, truth, labelled, margin=5):
    """Two-class Brier score in the box around what is labelled."""
    places = np.argwhere(labelled)
    box = tuple(
        slice(max(0, a - margin), b + margin + 1)
        for a, b in zip(places.min(0), places.max(0), strict=True)
    )
    return float((2 * (p[box] - truth[box]) ** 2).mean())


def test_regions_given_to_evaluate_are_scored_in_any_folder(tmp_path, capsys):
    predicted = np.zeros((6, 6, 6), np.uint8)
    reference = np.zeros((6, 6, 6), np.uint8)
    predicted[:2] = 1
    reference[1:3] = 1
    reference[1, :3] = 2
    for folder, label in (("predictions", predicted), ("truth", reference)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / folder / "a.nii.gz")
    rows = selfvox.evaluate(
        tmp_path / "predictions", tmp_path / "truth", regions="all=1,2;none=7;every=2,1"
    )
    dice = {row["name"]: row["dice"] for row in rows}
    # by hand: each has two planes of 36, one is common; of class 1, half of that one
    assert dice == {
        "class 1": pytest.approx(2 * 18 / (72 + 54)),
        "class 2": 0,
        "all": 0.5,
        "none": 1,
        "every": 0.5,
    }
    output = " ".join(capsys.readouterr().out.split())
    assert "mean of classes dice 0.143" in output
    assert "mean of regions dice 0.667" in output


def test_classes_stay_the_default_and_regions_are_measured_beside_them(scans, tmp_path):
    out = selfvox.finetune(scans, out=tmp_path / "run", regions=REGIONS, steps=2, **HOW)
    card = json.loads((out / "network" / "network.json").read_text())
    assert card["trained_on"] == "classes"
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dice_mean"] == pytest.approx((last["dice_class 1"] + last["dice_class 2"]) / 2)
    assert {"dice_whole", "dice_core"} <= last.keys()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train_on": "regions"}, "declares no regions; give them with regions="),
        ({"regions": "whole=1,2,3"}, "whole has the class 3, but the labels have"),
        ({"regions": "whole=1,2", "train_on": "regions"}, "several classes"),
        ({"regions": "core=2", "train_on": "regions"}, "class 1 is in none of them"),
    ],
)
def test_regions_that_do_not_fit_the_labels_are_refused(scans, tmp_path, settings, reason):
    with pytest.raises(UsageError) as refusal:
        selfvox.finetune(scans, out=tmp_path / "run", steps=1, **settings, **HOW)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_many_passes_vote_on_each_region(scans, run, tmp_path, capsys, monkeypatch, spacing):
    """A region is where most passes predict it: where its median probability is above a half."""
    monkeypatch.setattr(maps, "draw_maps", lambda file, _: file.touch())  # 1 s a scan
    training = {"steps": 20, "batch": 2, "loss": "dice+ce", "keep": "last", "spacing": spacing}
    out = tmp_path / "out"
    if spacing is not None:
        run = selfvox.finetune(
            scans, out=tmp_path / "run", regions=REGIONS, train_on="regions", **training, **HOW
        )
    settings = {
        "device": "cpu",
        "precision": "fp32",
        "passes": 3,
        "probabilities": True,
        "overlap": 0.2,
    }
    selfvox.predict(run, scans, out=out, maps=("entropy", "variance", "percentiles"), **settings)
    label = np.asarray(nib.load(out / "s0.nii.gz").dataobj)
    median = nib.load(out / "maps" / "s0_percentile-50.nii.gz").get_fdata()
    assert median.shape == nib.load(out / "maps" / "s0_variance.nii.gz").shape == (20, 20, 20, 2)
    if spacing is None:
        np.testing.assert_array_equal(label == 2, median[..., 1] > 0.5)
        np.testing.assert_array_equal(label > 0, median.max(-1) > 0.5)
    assert nib.load(out / "maps" / "s0_entropy.nii.gz").get_fdata().max() <= np.log(2) + 1e-6
    rows = {
        row["case"]: row for row in csv.DictReader((out / "review.csv").read_text().splitlines())
    }
    voxels = float(rows["s0"]["whole ml"]) / 1.5 * 1000
    assert voxels == pytest.approx(np.count_nonzero(label), rel=1e-6 if spacing is None else 0.15)
    assert "class 1 ml" not in rows["s0"]
    agreement = [float(rows["s0"][f"{name} agreement"]) for name in ("whole", "core")]
    assert float(rows["s0"]["trust"]) == pytest.approx(np.mean(agreement), abs=1e-4)
    scored = selfvox.evaluate(out, scans / "labels", out=tmp_path / "scores.csv")
    assert np.mean([row["dice"] for row in scored if row["name"] == "whole"]) > 0.3
    of_regions = {
        name: [
            row["dice"]
            for row in scored
            if row["case"] == name and row["name"] in ("whole", "core")
        ]
        for name in rows
    }
    pairs = np.array(
        [(float(rows[name]["trust"]), np.mean(dice)) for name, dice in of_regions.items()]
    )
    output = " ".join(capsys.readouterr().err.split())
    assert f"trust and true Dice of 6 scans: correlation {np.corrcoef(pairs.T)[0, 1]:.2f}" in output
    # of other regions than those it was trained on, the trust says nothing
    selfvox.evaluate(out, scans / "labels", regions="any=1,2")
    output = capsys.readouterr().err
    assert "probabilities against the truth" in output
    assert "trust and true Dice" not in output
    # any pass that finds the core is enough
    selfvox.predict(
        run, scans, out=tmp_path / "union", vote="union", union_class="core", **settings
    )
    widest = np.asarray(nib.load(tmp_path / "union" / "s0.nii.gz").dataobj)
    assert ((label == 2) <= (widest == 2)).all()
    assert (widest == 2).sum() > (label == 2).sum()


def test_networks_of_the_same_regions_vote_together(scans, run, tmp_path):
    """One network twice votes as it predicts alone; one trained on classes is refused."""
    settings = {"device": "cpu", "precision": "fp32"}
    selfvox.predict(run, scans, out=tmp_path / "alone", **settings)
    selfvox.predict(run, scans, ensemble=(run,), out=tmp_path / "both", **settings)
    for number in range(6):
        predicted, reference = (
            np.asarray(nib.load(tmp_path / name / f"s{number}.nii.gz").dataobj)
            for name in ("alone", "both")
        )
        np.testing.assert_array_equal(predicted, reference)
    reference = selfvox.finetune(scans, out=tmp_path / "classes", regions=REGIONS, steps=1, **HOW)
    with pytest.raises(UsageError, match="its choice of classes or regions to train on differs"):
        selfvox.predict(run, scans, ensemble=(reference,), out=tmp_path / "mixed", **settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vote": "borda"}, "regions, which have no borda vote; take majority, union or mean"),
        (
            {"vote": "union", "union_class": "cor"},
            "no region is called 'cor'; did you mean 'core'?",
        ),
    ],
)
def test_votes_that_regions_do_not_have_are_refused(scans, run, tmp_path, settings, reason):
    with pytest.raises(UsageError) as refusal:
        selfvox.predict(run, scans, out=tmp_path / "out", passes=3, device="cpu", **settings)
    assert reason in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_regions_declared_when_preparing_are_those_of_every_run_upon_the_store(scans, tmp_path):
    store = selfvox.prepare(scans, out=tmp_path / "store", regions=REGIONS)
    run = selfvox.finetune(store, out=tmp_path / "run", steps=1, train_on="regions", **HOW)
    card = json.loads((run / "network" / "network.json").read_text())
    assert (card["regions"], card["trained_on"]) == ({"whole": [1, 2], "core": [2]}, "regions")
    with pytest.raises(UsageError, match="whole has the class 3, but the labels have"):
        selfvox.prepare(scans, out=tmp_path / "other", regions="whole=1,3")


def test_networks_of_slices_can_be_trained_on_regions(scans, tmp_path):
    training = {**HOW, "crop": CROP[:2], "slices": "coronal"}
    run = selfvox.finetune(
        scans, out=tmp_path / "run", steps=1, regions=REGIONS, train_on="regions", **training
    )
    selfvox.predict(run, scans, out=tmp_path / "out", device="cpu", probabilities=True)
    maps = nib.load(tmp_path / "out" / "s0_probabilities.nii.gz").get_fdata()
    label = np.asarray(nib.load(tmp_path / "out" / "s0.nii.gz").dataobj)
    assert maps.shape == (20, 20, 20, 2)
    assert np.array_equal(label == 2, maps[..., 1] > 0.5)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_each_region_has_a_probability_of_its_own_slice_by_slice_too(axis):
    shape = (5, 6, 7)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    window = shape if axis is None else (*shape[:axis], *shape[axis + 1 :])
    probabilities = segment_scan(
        lambda x: torch.cat([x, 2 * x], 1), image, window, 0.5, axis, overlapping=True
    )
    assert torch.allclose(probabilities, torch.cat([image, 2 * image]).sigmoid(), atol=1e-6)
