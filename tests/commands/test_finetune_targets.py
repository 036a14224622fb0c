"""Numbers of whole scans: spheres of known radius, from the table to scores and intervals."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

import selfvox
from selfvox.commands import finetune
from selfvox.errors import DataError, UsageError, WeightsError
from selfvox.evaluation.regression import score_targets
from selfvox.prediction.load_model import load_model
from selfvox.prediction.target_table import PredictedTarget
from selfvox.training.regression import Regression

OPTIONS = {
    "encoder": "none",
    "batch": 8,
    "crop": (16, 16, 16),
    "network": {"name": "plain", "channels": [4, 8]},
    "device": "cpu",
    "learning_rate": 0.01,
    "decoder_dropout": 0.2,
}


def write_spheres(folder, count, seed):
    """Volumes with a sphere of a random radius, and a table with the radii in mm."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    at = np.indices((16, 16, 16))
    lines = ["image,target"]
    for number in range(count):
        radius = rng.uniform(2, 6)
        centre = rng.uniform(6.5, 8.5, (3, 1, 1, 1))
        sphere = ((at - centre) ** 2).sum(0) < radius**2
        data = 100 + 5 * rng.normal(size=sphere.shape) + 100 * sphere
        name = f"scan_{seed}{number:02}.nii.gz"  # no scan of another folder
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), folder / name)
        # below 0 as well: their cells have a quote in tables
        lines.append(f"{name},{radius - 4:.4f}")
    table = folder / "radii.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 30 spheres, and a table of 12 others."""
    folder = tmp_path_factory.mktemp("spheres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "draw_curve", lambda *_: None)
        table = write_spheres(folder / "labelled", 30, 0)
        run = selfvox.finetune(table, out=folder / "run", steps=60, **OPTIONS)
    return run, write_spheres(folder / "new", 12, 1)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_radius_of_new_spheres_is_predicted_better_than_by_a_constant(trained, tmp_path):
    run, table = trained
    (predictions,) = selfvox.predict(run, table, out=tmp_path / "out", device="cpu")
    truth = {row["image"].removesuffix(".nii.gz"): float(row["target"]) for row in rows_of(table)}
    predicted = {row["id"]: float(row["target"].removeprefix("'")) for row in rows_of(predictions)}
    assert predicted.keys() == truth.keys()
    error = np.mean([abs(predicted[case] - truth[case]) for case in truth])
    scores = selfvox.evaluate(tmp_path / "out", table, out=tmp_path / "scores.csv")
    values = {row["score"]: row for row in scores}
    assert values["mean_absolute_error"]["value"] == pytest.approx(error, rel=1e-4)
    assert error < 0.4  # of radii from 2 to 6
    assert values["difference"]["high"] < 0
    constant = load_model(run).constant
    of_constant = np.mean([abs(constant - number) for number in truth.values()])
    assert values["error_of_a_constant"]["value"] == pytest.approx(of_constant, rel=1e-4)
    assert len(rows_of(tmp_path / "scores.csv")) == len(scores)


@pytest.mark.parametrize("error", [0.0, 1e6])
def test_a_network_that_is_no_better_than_the_constant_is_reported(
    error, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(finetune, "draw_curve", lambda *_: None)
    monkeypatch.setattr(
        Regression,
        "predict",
        lambda self, network, fabric, store, cases, size: torch.tensor(
            [[case.target + error] for case in cases]
        ),
    )
    table = write_spheres(tmp_path / "labelled", 12, 2)
    run = selfvox.finetune(table, out=tmp_path / "run", steps=1, **OPTIONS)
    output = capsys.readouterr().err
    assert ("no better than by the median of the training targets; train again" in output) == (
        error > 0
    )
    record = json.loads((run / "run.json").read_text())
    assert ("no better than by the median" in record.get("lost_problem", "")) == (error > 0)


def test_intervals_are_those_of_the_calibration(trained, tmp_path):
    run, table = trained
    calibration = json.loads((run / "network" / "calibration.json").read_text())
    errors = sorted(
        abs(float(row["target"].removeprefix("'")) - float(row["true_target"].removeprefix("'")))
        for row in rows_of(run / "network" / "calibration.csv")
    )
    # of six subjects, the largest error is the most that can be promised
    assert len(errors) == 6
    assert calibration["largest_error"] == pytest.approx(errors[-1], rel=1e-4)
    assert calibration["level"] == pytest.approx(6 / 7)
    (predictions,) = selfvox.predict(run, table, out=tmp_path / "out", device="cpu")
    for row in rows_of(predictions):
        low, number, high = (
            float(row[name].removeprefix("'")) for name in ("low", "target", "high")
        )
        assert high - number == pytest.approx(errors[-1], abs=1e-4)
        assert number - low == pytest.approx(errors[-1], abs=1e-4)


def test_passes_have_a_mean_and_a_spread(trained, tmp_path):
    run, table = trained
    # the passes of a single prediction have no calibration
    (predictions,) = selfvox.predict(run, table, out=tmp_path / "out", device="cpu", passes=8)
    for row in rows_of(predictions):
        low, number, high = (
            float(row[name].removeprefix("'")) for name in ("spread_low", "target", "spread_high")
        )
        assert low < number < high
        assert "level" not in row
    with pytest.raises(UsageError, match="which have no maps"):
        selfvox.predict(run, table, out=tmp_path / "maps", passes=2, maps=("entropy",))
    with pytest.raises(UsageError, match="passes have a mean"):
        selfvox.predict(run, table, out=tmp_path / "vote", passes=2, vote="borda")


def test_scores_are_means_with_intervals_over_subjects():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 10, 40)
    numbers = truth + rng.normal(1, 3, 40)
    predicted = [PredictedTarget(number, 48.0, (number - 5, number + 5), 0.9) for number in numbers]
    rows = score_targets(predicted, truth, [f"person_{number // 2}" for number in range(40)])
    values = {row["score"]: row for row in rows}
    assert values["mean_absolute_error"]["value"] == pytest.approx(np.abs(numbers - truth).mean())
    assert values["error_of_a_constant"]["value"] == pytest.approx(np.abs(48 - truth).mean())
    assert values["bias"]["value"] == pytest.approx((numbers - truth).mean())
    inside = (np.abs(numbers - truth) <= 5).mean()
    assert values["true_number_in_interval"]["value"] == pytest.approx(inside)
    assert values["subjects"]["value"] == 20
    # a person's two scans are drawn together: as the normal interval of 20 means of a pair
    pairs = np.abs(numbers - truth).reshape(20, 2).mean(1)
    half = 1.96 * pairs.std() / np.sqrt(20)
    row = values["mean_absolute_error"]
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_tables_and_requests_that_cannot_be_are_refused(trained, tmp_path):
    run, table = trained
    lines = table.read_text().splitlines()
    for cell in ("nan", "inf", "old", "1_0", "0x1"):
        bad = table.with_name("bad.csv")
        bad.write_text("\n".join([lines[0], lines[1].split(",")[0] + "," + cell]) + "\n")
        with pytest.raises(DataError, match=f"has the target '{cell}'; write a number"):
            selfvox.finetune(bad, out=tmp_path / "run", steps=1, **OPTIONS)
    bad.write_text("\n".join([lines[0], *(f"{line.split(',')[0]},3" for line in lines[1:])]))
    with pytest.raises(DataError, match="all scans have the same target"):
        selfvox.finetune(bad, out=tmp_path / "run", steps=1, **OPTIONS)
    both = [f"{lines[0]},grade", *(f"{line},{len(line) % 2}" for line in lines[1:])]
    bad.write_text("\n".join(both))
    with pytest.raises(UsageError, match="has grades, which are classified, and targets"):
        selfvox.finetune(bad, out=tmp_path / "both", steps=1, **OPTIONS)
    bad.unlink()
    with pytest.raises(UsageError, match=r"ordinal: is for classification, but .* has targets"):
        selfvox.finetune(table, out=tmp_path / "ordinal", steps=1, ordinal=False, **OPTIONS)
    with pytest.raises(WeightsError, match="predicts a number of whole scans"):
        selfvox.load_classifier(run)


def test_the_page_of_a_run_shows_true_and_predicted_numbers(trained, tmp_path):
    run, _ = trained
    page = selfvox.report(run, out=tmp_path / "report").read_text(encoding="utf-8")
    card = json.loads((run / "network" / "network.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (kept,) = [line for line in lines if line["step"] == card["step"]]
    rows = rows_of(run / "network" / "validation.csv")
    numbers = [
        (row["case"], float(row["true target"].removeprefix("'")),
         float(row["target"].removeprefix("'")))
        for row in rows
    ]  # fmt: skip
    split = json.loads((run / "split.json").read_text())
    assert len(numbers) == len(split["validation"])
    error = np.mean([abs(true - predicted) for _, true, predicted in numbers])
    assert kept["mean_absolute_error"] == pytest.approx(error, rel=1e-4)
    assert f"validation scans is {error:.3g}; a constant" in page
    assert f"has {kept['error_of_a_constant']:.3g}." in page
    points = json.loads(page.split('id="points">')[1].split("</script>")[0])
    texts = [
        f"{case}: {predicted:.4g} at true target {true:g}" for case, true, predicted in numbers
    ]
    assert sorted(points["targets-0"]) == sorted(texts)
    # the largest error comes first
    worst = max(numbers, key=lambda row: abs(row[1] - row[2]))[0]
    table = page[page.index("Scans of the validation, the worst first") :]
    assert min((case for case, *_ in numbers), key=table.index) == worst
    assert len(points["error-0"]) == sum("mean_absolute_error" in line for line in lines)
