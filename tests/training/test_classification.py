"""Fine-tuning that classifies whole scans: it learns, resumes to the same bytes, and predicts."""

import csv
import dataclasses
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import selfvox
from selfvox.data.preparation.split import read_split
from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.whole_scans import WholeScans
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.runs.atomic_files import sha256
from selfvox.runs.weights import read_encoder, read_network
from selfvox.training import classification
from selfvox.training.whole_scan_task import WholeScanObjective

SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "device": "cpu", "encoder": "none"}


def drawn(grade, shape, rng):
    """Stripes that get the finer the higher the grade, on noise."""
    at = np.indices(shape)[rng.integers(len(shape))] + rng.integers(8)
    return 60 + 120 * (at // (6, 3, 1)[grade] % 2) + rng.normal(0, 8, shape)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixty pictures of three grades, of different shapes, two of each subject."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines = ["image,grade,subject"]
    for number in range(60):
        grade = number // 2 % 3
        data = drawn(grade, (24, 24 if number % 4 else 32), rng)
        Pillow.fromarray(data.clip(0, 255).astype(np.uint8)).save(folder / f"eye_{number:02}.png")
        lines.append(f"eye_{number:02}.png,{grade},sub{number // 2:02}")
    (folder / "grades.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def store(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    return selfvox.prepare(pictures, out=folder, test=9, validation=6, workers=1)


def answers(out):
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_grades_are_learnt_predicted_and_scored(pictures, store, tmp_path):
    run = selfvox.finetune(
        store, out=tmp_path / "run", steps=120, batch=8, crop=24, learning_rate=1e-2, **SMALL
    )
    _, card = read_network(run / "network")
    assert (card.classes, card.ordinal) == (("0", "1", "2"), True)
    table = selfvox.predict(run, pictures, out=tmp_path / "predictions", subset="test")
    assert table == [tmp_path / "predictions" / "predictions.csv"]
    rows = answers(tmp_path / "predictions")
    test = set(read_split(run / "split.json").test)
    assert len(rows) == 2 * len(test) == 18
    assert {f"sub{int(row['id'][4:]) // 2:02}" for row in rows} == test
    for row in rows:
        assert row["file"] == f"{row['id']}.png"
        assert sum(float(row[f"probability_{name}"]) for name in "012") == pytest.approx(
            1, abs=1e-5
        )
    scores = selfvox.evaluate(tmp_path / "predictions", pictures)
    kappa = next(row["value"] for row in scores if row["score"] == "quadratic_kappa")
    assert kappa > 0.6
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # the last weights are kept, and need not be the best
    assert {line["step"]: line["kappa"] for line in lines if "kappa" in line}[120] == card.score
    assert card.step == 120


def test_a_run_that_crashed_resumes_to_the_same_bytes(store, tmp_path, monkeypatch):
    settings = {**SMALL, "steps": 6, "batch": 4, "crop": 16, "validate_every": 2}
    selfvox.finetune(store, out=tmp_path / "alone", **settings)
    forward = WholeScanObjective.forward

    def crash(self, batch, step, rng):
        if step == 3:
            raise KeyboardInterrupt
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(WholeScanObjective, "forward", crash)
        with pytest.raises(KeyboardInterrupt):
            selfvox.finetune(store, out=tmp_path / "run", **settings)
    selfvox.finetune(store, out=tmp_path / "run", resume=True, **settings)
    for file in ("network/weights.safetensors", "network/network.json", "split.json"):
        assert sha256(tmp_path / "run" / file) == sha256(tmp_path / "alone" / file)


def test_existing_predictions_are_kept_and_lost_ones_are_made_again(
    pictures, store, tmp_path, capsys
):
    run = selfvox.finetune(store, out=tmp_path / "run", steps=1, batch=4, crop=16, **SMALL)
    out = tmp_path / "predictions"
    selfvox.predict(run, pictures, out=out)
    table = (out / "predictions.csv").read_bytes()
    ledger = (out / "cases.jsonl").read_text().splitlines()
    (out / "predictions.csv").unlink()
    (out / "cases.jsonl").write_text(
        "\n".join(ledger[:40]) + "\n" + ledger[40][:30]
    )  # killed while writing
    capsys.readouterr()
    selfvox.predict(run, pictures, out=out)
    assert "40 of 60 predictions exist already" in capsys.readouterr().err
    assert (out / "predictions.csv").read_bytes() == table
    assert len((out / "cases.jsonl").read_text().splitlines()) == 60


def test_a_pre_trained_encoder_is_loaded_and_frozen(store, tmp_path):
    network = {"name": "plain", "channels": [4, 8], "norm": "batch"}
    settings = {"network": network, "crop": 16, "steps": 2, "batch": 4, "device": "cpu"}
    encoder = selfvox.pretrain(store, out=tmp_path / "pre", task="rotation", **settings)
    run = selfvox.finetune(
        store, out=tmp_path / "run", encoder=str(encoder), freeze="always", **settings
    )
    pretrained, _ = read_encoder(encoder / "encoder")
    finetuned, card = read_network(run / "network")
    assert card.encoder.startswith(f"loaded {len(pretrained)} tensors")
    assert all(
        torch.equal(finetuned[f"encoder.{name}"], tensor) for name, tensor in pretrained.items()
    )


def test_another_scale_than_that_of_the_pre_training_is_reported(store, tmp_path, capsys):
    settings = {"network": SMALL["network"], "steps": 1, "batch": 4, "device": "cpu"}
    encoder = selfvox.pretrain(store, out=tmp_path / "pre", task="rotation", crop=16, **settings)
    settings |= {"encoder": str(encoder), "freeze": "always"}
    selfvox.finetune(store, out=tmp_path / "whole", **settings)
    assert "whole scans are resized" not in capsys.readouterr().err
    # 24 pixels become 16
    selfvox.finetune(store, out=tmp_path / "reduced", crop=16, **settings)
    message = capsys.readouterr().err
    assert "whole scans are resized to voxels of 1.5 x 1.5 mm" in message
    assert "pre-trained at 1 x 1 mm; pre-train it with --size 16,16" in message


def test_each_subject_is_tested_in_one_fold_and_its_scans_stay_together(store, tmp_path):
    tested = []
    settings = {**SMALL, "steps": 1, "batch": 2, "crop": 16}
    for fold in (1, 2, 3):
        run = selfvox.finetune(
            store, out=tmp_path / str(fold), fold=f"{fold}/3", seed=fold, **settings
        )
        split = read_split(run / "split.json")
        assert sorted((*split.train, *split.validation, *split.test)) == [
            f"sub{number:02}" for number in range(30)
        ]
        for subjects, count in ((split.test, 10), (split.validation, 4), (split.train, 16)):
            grades = [int(subject[3:]) % 3 for subject in subjects]
            assert len(grades) == count
            assert max(map(grades.count, range(3))) - min(map(grades.count, range(3))) <= 1
        tested += split.test
    assert sorted(tested) == [f"sub{number:02}" for number in range(30)]
    for wrong in ("0/5", "6/5", "2", "a/b", "1/31"):
        with pytest.raises(UsageError, match="fold"):
            selfvox.finetune(store, out=tmp_path / "wrong", fold=wrong, **settings)


@pytest.mark.parametrize(
    ("name", "value"), [("regions", "A=1,2"), ("train_on", "regions"), ("loss", "dice+ce")]
)
def test_options_of_segmentation_are_refused(store, tmp_path, name, value):
    with pytest.raises(UsageError, match=f"{name}: is for segmentation, but .* has grades"):
        selfvox.finetune(store, out=tmp_path / "run", steps=1, **{name: value}, **SMALL)


def test_nominal_classes_are_scored_by_balanced_accuracy(store, pictures, tmp_path):
    run = selfvox.finetune(
        store, out=tmp_path / "run", ordinal=False, balance=True, steps=2, crop=16, **SMALL
    )
    _, card = read_network(run / "network")
    assert card.ordinal is False
    assert 0 <= card.score <= 1
    selfvox.predict(run, pictures, out=tmp_path / "out", subset="test")
    for row in answers(tmp_path / "out"):
        assert float(row[f"probability_{row['class']}"]) == max(
            float(row[f"probability_{name}"]) for name in "012"
        )


def test_balanced_drawing_shows_every_class_equally_often(store):
    opened = open_store(store)
    cases = [case for case in opened.cases if case.grade != 1 or case.id < "eye_10"]
    drawn = WholeScans(
        opened, cases, (8, 8), 0, {case.id: case.grade for case in cases}, balance=True
    )
    shown = [int(drawn[number]["answer"]) for number in range(300)]
    assert min(map(shown.count, range(3))) > 75
    plain = WholeScans(opened, cases, (8, 8), 0, {case.id: case.grade for case in cases})
    epoch = sorted(int(plain[number]["answer"]) for number in range(len(cases)))
    assert epoch == sorted(case.grade for case in cases)


def test_volumes_are_classified_the_same_way(tmp_path):
    rng = np.random.default_rng(1)
    scans = tmp_path / "scans"
    scans.mkdir()
    lines = ["image,grade"]
    for number in range(24):
        at = np.indices((16, 18, 12)) - np.array([8, 9, 6]).reshape(3, 1, 1, 1)
        ball = (at**2).sum(0) < 25
        box = (abs(at) < 4).all(0) & ((at // 2).sum(0) % 2 == 0)
        data = rng.normal(100, 10, ball.shape) + 300 * (box if number % 2 else ball)
        nib.save(
            nib.Nifti1Image(data.astype(np.float32), np.eye(4)), scans / f"s{number:02}.nii.gz"
        )
        lines.append(f"s{number:02}.nii.gz,{number % 2}")
    (scans / "grades.csv").write_text("\n".join(lines) + "\n")
    run = selfvox.finetune(
        scans,
        out=tmp_path / "run",
        steps=40,
        batch=4,
        crop=16,
        learning_rate=1e-2,
        workers=1,
        **SMALL,
    )
    selfvox.predict(run, scans, out=tmp_path / "out", subset="validation")
    scores = selfvox.evaluate(tmp_path / "out", scans / "grades.csv")
    assert next(row["value"] for row in scores if row["score"] == "accuracy") > 0.7


def test_of_equal_scores_the_later_step_is_kept_and_undefined_ones_are_reported(
    store, tmp_path, monkeypatch, capsys
):
    settings = {**SMALL, "steps": 5, "batch": 2, "crop": 16, "validate_every": 1, "keep": "best"}
    for number, (kappas, kept_step) in enumerate(
        (
            ([0.1, 0.5, 0.5, 0.5, 0.2], 4),
            ([math.nan, -0.5, math.nan, -0.5, math.nan], 4),
            ([math.nan] * 5, 5),
        )
    ):
        values = iter(kappas)
        monkeypatch.setattr(classification, "kappa", lambda _, values=values: next(values))
        run = selfvox.finetune(store, out=tmp_path / str(number), **settings)
        card = json.loads((run / "network" / "network.json").read_text())
        assert (card["step"], card["validation_kappa"]) == (
            kept_step,
            None if math.isnan(kappas[kept_step - 1]) else kappas[kept_step - 1],
        )
        output = capsys.readouterr().err
        assert output.count("kappa of the validation scans is not defined") == (math.nan in kappas)


@pytest.mark.parametrize("constant", [True, False])
def test_a_network_that_gives_every_scan_the_same_class_is_reported(
    constant, store, tmp_path, monkeypatch, capsys
):
    decide = classification.decide_class

    def decided(probabilities, ordinal):
        numbers = decide(probabilities, ordinal)
        # one scan of another class is enough
        return torch.tensor([2 * int(constant)] + [2] * (len(numbers) - 1))

    monkeypatch.setattr(classification, "decide_class", decided)
    selfvox.finetune(store, out=tmp_path / "run", steps=1, crop=24, keep="last", **SMALL)
    output = capsys.readouterr().err
    assert ("same class, none 0 or 1; train again" in output) == constant
    assert "the learning rate rises to 0.001" in output


def test_one_class_alone_is_refused(store, tmp_path):
    case, *others = open_store(store).without_test_subjects()
    alike = [case, *(other for other in others if other.grade == case.grade)]
    task = classification.Classification(
        open_store(store), selfvox.finetune.settings(labelled=store, out=tmp_path, encoder="none")
    )
    encoder = build_encoder(plan_encoder(SMALL["network"], (24, 24), (1, 1)), 2, 1)
    with pytest.raises(UsageError, match=f"all {len(alike)} training scans have the class 0"):
        task.objective(Classifier(encoder, 3, True), alike, 0)
    assert case.grade == 0
    assert task.untaught(alike) == ["1", "2"]


def test_classes_named_after_sides_are_not_mirrored_by_default(store, tmp_path):
    named = dataclasses.replace(open_store(store), classes={0: "left eye", 1: "right eye"})
    settings = {"labelled": store, "out": tmp_path, "encoder": "none"}
    with pytest.raises(UsageError, match=r"mirror: .* leave left-right out of --mirror"):
        classification.Classification(named, selfvox.finetune.settings(**settings))
    upright = selfvox.finetune.settings(**settings, mirror=("up-down",))
    assert classification.Classification(named, upright).mirrored == ("up-down",)
