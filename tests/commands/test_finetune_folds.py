"""A cross-validated ensemble: one command trains a network per fold, and they predict together."""

import csv
import json
import statistics

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.commands import finetune
from selfvox.data.preparation.split import read_split
from selfvox.errors import UsageError, WeightsError
from selfvox.prediction import calibrate_run
from selfvox.runs.atomic_files import sha256
from selfvox.runs.weights import read_network
from selfvox.training.segmentation_objective import SegmentationObjective
from selfvox.uncertainty.calibration import Calibration
from selfvox.uncertainty.calibration_file import read_calibration, write_calibration

PASSES = 3  # of the calibration: more would take longer than the training


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Draw no curves: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune, "draw_curve", lambda *_: None)
        patched.setattr(calibrate_run, "SEGMENTER_PASSES", PASSES)
        yield


def trained(store, out, **changed):
    settings = {
        "encoder": "none",
        "network": {"name": "plain", "channels": [4, 8]},
        "folds": 2,
        "steps": 2,
        "validate_every": 2,
        "device": "cpu",
    }
    return selfvox.finetune(store, out=out, **settings | changed)


@pytest.fixture(scope="module")
def folds(shapes_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "folds"
    return trained(shapes_store, out, crop=(16, 16, 16))


@pytest.fixture(scope="module")
def scans(shapes_store):
    return shapes_store.parent / "scans"


def test_each_fold_validates_on_its_own_subjects_and_the_scores_are_summarised(folds, shapes_store):
    splits = [read_split(folds / f"fold_{number}" / "split.json") for number in (1, 2)]
    store_split = read_split(shapes_store / "split.json")
    labelled = {*store_split.train, *store_split.validation}
    assert set(splits[0].train) == set(splits[1].validation)
    assert {*splits[0].train, *splits[0].validation} == labelled
    assert splits[0].test == splits[1].test == store_split.test
    record = json.loads((folds / "folds.json").read_text())
    scores = [read_network(folds / f"fold_{number}" / "network")[1].score for number in (1, 2)]
    assert record["scores"] == scores
    assert record["score"] == "dice"
    assert record["mean"] == pytest.approx(sum(scores) / 2)
    assert record["sd"] == pytest.approx(statistics.stdev(scores))


def test_a_folder_of_folds_predicts_as_the_ensemble_of_its_runs(folds, scans, tmp_path):
    options = {"device": "cpu", "subset": "test", "vote": "mean", "maps": ["entropy"]}
    together = selfvox.predict(folds, scans, out=tmp_path / "together", **options)
    first, second = folds / "fold_1", folds / "fold_2"
    named = selfvox.predict(first, scans, out=tmp_path / "named", ensemble=[second], **options)
    assert len(together) == 2
    for path, expected in zip(together, named, strict=True):
        assert np.array_equal(nib.load(path).dataobj, nib.load(expected).dataobj)
    records = [
        json.loads((tmp_path / name / "predictions.json").read_text())
        for name in ("together", "named")
    ]
    assert records[0]["ensemble_sha256"] == records[1]["ensemble_sha256"] != []
    assert len(selfvox.load_segmenter(folds, device="cpu").models) == 2


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_each_scan_calibrates_by_the_network_that_did_not_train_on_it(folds, shapes_store):
    measured = table(folds / "calibration.csv")
    subjects = {"fold_1": set(), "fold_2": set()}
    for row in measured:
        subjects[row["network"]].add(row["subject"])
    for name, of_fold in subjects.items():
        split = read_split(folds / name / "split.json")
        assert of_fold == set(split.validation)
        assert not of_fold & {*split.train, *split.test}
    made = [read_calibration(folds / name, Calibration) for name in subjects]
    cards = [read_network(folds / name / "network")[1] for name in subjects]
    assert [network.network_sha256 for network in made] == [card.sha256 for card in cards]
    assert made[0].classes == made[1].classes
    assert (made[0].subjects, made[0].networks, made[0].passes) == (6, 2, PASSES)
    # a network measures as it does alone
    selfvox.calibrate(folds / "fold_2", passes=PASSES, device="cpu")
    alone = table(folds / "fold_2" / "network" / "calibration.csv")
    keys = ("agreement", "volume", "spread", "true_volume", "dice")
    of_fold = [row for row in measured if row["network"] == "fold_2"]
    assert [[row[key] for key in keys] for row in alone] == [
        [row[key] for key in keys] for row in of_fold
    ]
    write_calibration(folds / "fold_2", made[1])


def test_the_folds_together_are_predicted_with_estimates_that_evaluate_checks(
    folds, scans, tmp_path, capsys
):
    out = tmp_path / "out"
    options = {"passes": PASSES, "device": "cpu", "overlap": 0.5}
    few = tmp_path / "few.txt"
    few.write_text("\n".join(map(str, sorted((scans / "images").iterdir())[:3])))
    selfvox.predict(folds, few, out=out, **options)
    said = " ".join(capsys.readouterr().err.split())
    assert "contain the truth of 86 % of such scans" in said
    assert "calibrated on 6 subjects, each by one of 2 networks that was not trained" in said
    rows = table(out / "review.csv")
    assert len(rows) == 3
    records = map(json.loads, (out / "cases.jsonl").read_text().splitlines())
    reviews = {record["id"]: record["review"] for record in records}
    networks = tuple(read_calibration(folds / name, Calibration) for name in ("fold_1", "fold_2"))
    names = json.loads((out / "classes.json").read_text())
    for row in rows:
        for part in reviews[row["case"]]["classes"]:
            name = names[str(part["class"])]
            dice = [
                network.estimate({**part, **measure}).dice
                for network, measure in zip(networks, part["networks"], strict=True)
            ]
            assert float(row[f"{name} dice"]) == pytest.approx(sum(dice) / 2, abs=1e-5)
    selfvox.evaluate(out, scans)
    said = " ".join(capsys.readouterr().err.split())
    assert "predicted Dice of 3 scans" in said
    assert "86 % intervals: " in said
    # the first network of an ensemble says the same as alone
    selfvox.predict(folds / "fold_1", few, out=tmp_path / "alone", **options)
    for record in map(json.loads, (tmp_path / "alone" / "cases.jsonl").read_text().splitlines()):
        pairs = zip(record["review"]["classes"], reviews[record["id"]]["classes"], strict=True)
        for part, of_both in pairs:
            measure = {key: part[key] for key in ("volume", "spread", "agreement")}
            assert of_both["networks"][0] == pytest.approx(measure)


def test_an_ensemble_says_in_one_line_why_it_has_no_estimates(folds, scans, tmp_path, capsys):
    scan = next((scans / "images").iterdir())
    selfvox.predict(folds, scan, out=tmp_path / "plain", device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert "no intervals of the volumes, since each network predicts once; give --passes" in said
    file = folds / "fold_2" / "network" / "calibration.json"
    content = file.read_bytes()
    file.unlink()
    selfvox.predict(folds, scan, out=tmp_path / "out", passes=PASSES, device="cpu")
    file.write_bytes(content)
    said = "".join(capsys.readouterr().err.split())
    assert f"since{folds}/fold_2hasnocalibration;`selfvoxcalibrate{folds}`makesone" in said
    assert "predicted dice" not in table(tmp_path / "out" / "review.csv")[0]


def test_subjects_that_trained_some_networks_are_no_subset_of_the_ensemble(folds, scans, tmp_path):
    with pytest.raises(UsageError, match=r"fold_2: has seen 3 of the 3 .* name one fold"):
        selfvox.predict(folds, scans, out=tmp_path / "out", subset="validation", device="cpu")


def test_a_killed_command_goes_on_with_its_fold_and_keeps_those_that_are_done(
    folds, shapes_store, tmp_path, monkeypatch
):
    out = tmp_path / "folds"
    steps = []
    forward = SegmentationObjective.forward

    def killed(self, batch, step, rng):
        steps.append(step)
        # the second step of the second fold
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationObjective, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(shapes_store, out, crop=(16, 16, 16))
    with pytest.raises(WeightsError, match="not all folds are finished; go on with"):
        selfvox.predict(out, tmp_path, out=tmp_path / "predictions", device="cpu")
    with pytest.raises(UsageError, match=r"fold_1: already contains a run; continue"):
        trained(shapes_store, out, crop=(16, 16, 16))
    weights = out / "fold_1" / "network" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    trained(shapes_store, out, crop=(16, 16, 16), resume=True)
    assert weights.stat().st_mtime_ns == written
    for number in (1, 2):
        name = f"fold_{number}/network/weights.safetensors"
        assert sha256(out / name) == sha256(folds / name)


def test_a_run_is_no_folder_of_folds_and_a_folder_of_folds_is_no_run(folds, shapes_store):
    with pytest.raises(UsageError, match="fold_1: is a run, and `folds` makes a folder of runs"):
        trained(shapes_store, folds / "fold_1")
    with pytest.raises(UsageError, match="folds=2, not 3"):
        trained(shapes_store, folds, crop=(16, 16, 16), folds=3, resume=True)


def test_one_fold_and_all_folds_exclude_each_other(shapes_store, tmp_path):
    with pytest.raises(UsageError, match="fold and folds: give one of them, not both"):
        trained(shapes_store, tmp_path / "out", fold="1/2")


def test_classifiers_of_all_folds_predict_together(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,grade"]
    for number in range(6):
        data = rng.integers(0, 255, (16, 16), np.uint8)
        Pillow.fromarray(data).save(scans / f"eye{number}.png")
        lines.append(f"eye{number}.png,{number % 2}")
    table = scans / "grades.csv"
    table.write_text("\n".join(lines) + "\n")
    out = trained(table, tmp_path / "folds")
    assert json.loads((out / "folds.json").read_text())["score"] == "kappa"
    assert (out / "store").is_dir()
    assert not (out / "fold_1" / "store").exists()
    (written,) = selfvox.predict(out, scans, out=tmp_path / "predictions", device="cpu")
    record = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert len(record["ensemble_sha256"]) == 1
    assert len(written.read_text().splitlines()) == 7
