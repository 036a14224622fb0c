"""A classifier is calibrated when it is trained; `predict` and `evaluate` say what that found."""

import csv
import json

import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.commands import finetune
from selfvox.data.preparation.split import read_split
from selfvox.errors import DataError, UsageError
from selfvox.uncertainty.calibration_file import read_calibration
from selfvox.uncertainty.class_calibration import ClassCalibration, EnsembleClassCalibration

OPTIONS = {
    "network": {"name": "plain", "channels": [4, 8]},
    "encoder": "none",
    "steps": 12,
    "batch": 4,
    "crop": 16,
    "learning_rate": 1e-2,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Draw no curves: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune, "draw_curve", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twelve pictures of three grades."""
    folder = tmp_path_factory.mktemp("eyes") / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,grade"]
    for number in range(12):
        data = rng.normal(60 + 50 * (number % 3), 20, (16, 16)).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(data).save(folder / f"eye_{number:02}.png")
        lines.append(f"eye_{number:02}.png,{number % 3}")
    (folder / "grades.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def folds(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "folds"
    return selfvox.finetune(scans / "grades.csv", out=out, folds=3, ordinal=False, **OPTIONS)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_folds_are_calibrated_by_scans_that_each_network_has_not_seen(folds):
    measured = table(folds / "calibration.csv")
    assert len(measured) == 12
    for row in measured:
        split = read_split(folds / row["network"] / "split.json")
        assert row["subject"] in split.validation
        assert row["subject"] not in split.train
    made = [read_calibration(folds / f"fold_{n}", ClassCalibration) for n in (1, 2, 3)]
    assert {network.temperature for network in made} == {made[0].temperature}
    assert len({network.network_sha256 for network in made}) == 3
    assert (made[0].subjects, made[0].networks, made[0].passes, made[0].level) == (12, 3, 1, 0.9)
    # at the level of the sets, 12 of the 12 measured scans are inside
    assert all(row["true_class"] in row["set"].split() for row in measured)


def test_predict_writes_what_the_calibration_says_and_evaluate_checks_it(
    folds, scans, tmp_path, capsys
):
    (path,) = selfvox.predict(folds, scans, out=tmp_path / "out", device="cpu")
    assert (
        "sets of classes contain the true class of 90 % of such scans (calibrated on 12 subjects, "
        "each by one of 3 networks that was not trained on it"
    ) in said(capsys)
    rows = table(path)
    made = tuple(read_calibration(folds / f"fold_{n}", ClassCalibration) for n in (1, 2, 3))
    ensemble = EnsembleClassCalibration(made, ordinal=False)
    answers = [json.loads(line) for line in (path.parent / "cases.jsonl").read_text().splitlines()]
    by_case = {answer["id"]: answer["answer"] for answer in answers}
    covered = 0
    for row in rows:
        answer = by_case[row["id"]]
        expected = ensemble.apply(answer["probabilities"], int(answer["class"]))
        assert row["set"].split() == [str(number) for number in expected.set]
        assert row["class"] in row["set"].split()
        assert float(row["level"]) == 0.9
        shares = [float(row[f"calibrated_{name}"]) for name in "012"]
        assert shares == pytest.approx(expected.probabilities, abs=1e-5)
        covered += str(int(row["id"][-2:]) % 3) in row["set"].split()
    scores = selfvox.evaluate(tmp_path / "out", scans / "grades.csv", out=tmp_path / "s.csv")
    printed = said(capsys)
    assert f"90 % sets of classes: {covered} of 12 contain the true class" in printed
    assert "before, mean" in printed
    assert "after calibration" in printed
    value = {row["score"]: row["value"] for row in scores if row["class"] == ""}
    assert value["set_coverage"] == pytest.approx(covered / 12)
    sizes = [len(row["set"].split()) for row in rows]
    assert value["set_size"] == pytest.approx(np.mean(sizes))
    assert "set_size" in (tmp_path / "s.csv").read_text()


def test_passes_need_a_calibration_of_passes_and_are_a_spread_without(
    folds, scans, tmp_path, capsys
):
    run = folds / "fold_1"
    options = {"passes": 3, "device": "cpu"}
    (path,) = selfvox.predict(run, scans, out=tmp_path / "out", **options)
    assert "no calibrated probabilities, since the run is calibrated for a single" in said(capsys)
    columns = table(path)[0].keys()
    assert {"spread_low_0", "spread_high_2"} <= columns
    assert not {"set", "low_0", "high_0", "calibrated_0"} & columns
    review = table(tmp_path / "out" / "review.csv")[0].keys()
    assert {"spread low", "spread high"} <= review
    assert not {"low", "high"} & review
    selfvox.evaluate(tmp_path / "out", scans / "grades.csv")
    assert "probability of the most probable class (not calibrated): mean" in said(capsys)
    before = (run / "network" / "calibration.json").read_bytes()
    selfvox.calibrate(run, **options)
    selfvox.predict(run, scans, out=tmp_path / "out", **options)
    (run / "network" / "calibration.json").write_bytes(before)
    assert "set" in table(path)[0]


def test_a_single_run_is_calibrated_by_its_validation_scans(scans, tmp_path, capsys):
    selfvox.prepare(scans / "grades.csv", out=tmp_path / "store", validation=4, workers=1)
    run = selfvox.finetune(tmp_path / "store", out=tmp_path / "run", **OPTIONS | {"steps": 2})
    assert "sets of classes contain the true class of 80 % of such scans" in said(capsys)
    made = read_calibration(run, ClassCalibration)
    assert (made.subjects, made.networks) == (4, 1)
    split = read_split(run / "split.json")
    measured = table(run / "network" / "calibration.csv")
    assert {row["subject"] for row in measured} == set(split.validation)
    # scans that the network has not seen, but of a class that it does not know
    other = tmp_path / "other"
    other.mkdir()
    lines = ["image,grade"]
    rng = np.random.default_rng(1)
    for number in range(3):
        picture = rng.integers(0, 255, (16, 16)).astype(np.uint8)
        Pillow.fromarray(picture).save(other / f"new_{number}.png")
        lines.append(f"new_{number}.png,{number + 1}")
    (other / "grades.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="new_2: has the class 3, which the run was not trained"):
        selfvox.calibrate(run, other / "grades.csv", device="cpu")
    with pytest.raises(UsageError, match="a single pass has no dropout; give passes=20 too"):
        selfvox.calibrate(run, passes=1, encoder_dropout=0.3)
