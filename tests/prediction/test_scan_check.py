"""A scan unlike those of the training is refused, or forced and named; a like one is predicted."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import selfvox
from selfvox.cli import main
from selfvox.commands import finetune
from selfvox.commands.predict import predict
from selfvox.data.formats.image import read_image
from selfvox.data.preparation.recipe import Recipe
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.scan_range import NOTED, REFUSED, ScanRange
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError, WeightsError
from selfvox.prediction.load_model import load_model
from selfvox.prediction.scan_check import compare_scan
from selfvox.runs.typed_json import write_checked
from selfvox.settings.verbs import Predict

from ..conftest import affine, blob, make_run, write_scan

WIDE = affine(spacing=(4.0, 4.8, 8.0))  # the same voxels, four times as long


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def add_range(run, scans, **changes):
    """Put the range of these scans into the card of a run."""
    path = run / "network" / "network.json"
    card = json.loads(path.read_text())
    recipe = Recipe.from_dict(card["recipe"])
    profiles = []
    for file in sorted(scans.iterdir()):
        image = read_image(file)
        prepared = recipe.apply(image)
        profiles.append(measure_profile(image, prepared.data, prepared.geometry))
    card["scans"] = {**ScanRange.of(profiles, recipe.channel_names).to_dict(), **changes}
    write_checked(path, card)


@pytest.fixture
def trained(run, scans):
    """A run that knows what its three scans were."""
    add_range(run, scans)
    return run


@pytest.fixture
def mixed(tmp_path):
    """A scan like those of the training, one of a slightly other size, and one far outside."""
    folder = tmp_path / "new"
    write_scan(folder / "like.nii.gz", blob((20, 17, 12), 7))
    # a factor of 1.8 in one extent is 4.2 least differences, of three scans 2.5
    write_scan(folder / "larger.nii.gz", blob((20, 17, 12), 7), affine(spacing=(1.9, 1.2, 2.0)))
    write_scan(folder / "wide.nii.gz", blob((20, 17, 12), 7), WIDE)
    return folder


def test_scans_of_the_training_itself_are_predicted_without_a_note(trained, scans, tmp_path):
    predict(Predict(run=trained, scans=scans, out=tmp_path / "out"))
    for line in (tmp_path / "out" / "cases.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["distance"] == 0
        assert "notes" not in record


@pytest.mark.fault("H3", "scans unlike those of the training", "refused, the others are predicted")
def test_a_scan_far_outside_is_refused_with_exit_code_3_and_the_others_go_on(
    trained, mixed, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["predict", str(trained), str(mixed), "--out", str(out), "--device", "cpu"]) == 3
    assert {path.name for path in out.glob("*.nii.gz")} == {"like.nii.gz", "larger.nii.gz"}
    (rejected,) = rows(out / "rejected.csv")
    assert rejected["id"] == "wide"
    assert rejected["reason"].startswith("unlike the 3 scans that the run was trained on: extent ")
    assert rejected["reason"].endswith("predict it all the same with --force")
    records = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]
    distances = {record["id"]: record["distance"] for record in records}
    assert distances["like"] < NOTED <= distances["larger"] < REFUSED
    (note,) = next(record["notes"] for record in records if record["id"] == "larger")
    assert note.startswith("differs from the 3 scans that the run was trained on: extent ")


def test_a_forced_scan_is_predicted_noted_and_the_first_to_review(trained, mixed, tmp_path):
    out = tmp_path / "out"
    settings = {"run": trained, "scans": mixed, "out": out, "passes": 2, "force": True}
    assert len(predict(Predict(**settings))) == 3
    table = rows(out / "review.csv")
    assert table[0]["case"] == "wide"
    assert float(table[0]["distance"]) >= REFUSED
    assert table[0]["notes"].startswith("unlike the 3 scans")
    # the others by trust, whatever their notes
    trust = [float(row["trust"]) for row in table[1:]]
    assert trust == sorted(trust)


def test_an_unusual_scan_of_the_own_test_subjects_is_noted_not_refused(trained, scans, tmp_path):
    """Scores must be of all test scans: `scan_1` and `scan_2` are those of the run's split."""
    write_scan(scans / "scan_1.nii.gz", blob((20, 17, 12), 7), WIDE)
    written = predict(Predict(run=trained, scans=scans, out=tmp_path / "out", subset="test"))
    assert [path.name for path in written] == ["scan_1.nii.gz", "scan_2.nii.gz"]
    first, _ = (tmp_path / "out" / "cases.jsonl").read_text().splitlines()
    assert json.loads(first)["distance"] >= REFUSED


def test_a_run_that_does_not_say_what_its_scans_were_refuses_none(run, mixed, tmp_path):
    predict(Predict(run=run, scans=mixed, out=tmp_path / "out"))
    records = (tmp_path / "out" / "cases.jsonl").read_text()
    assert "distance" not in records


def test_a_notebook_refuses_it_too(trained, mixed):
    segmenter = selfvox.load_segmenter(trained, device="cpu")
    with pytest.raises(DataError, match=r"unlike the 3 scans .* force=True"):
        segmenter.predict(mixed / "wide.nii.gz")
    assert segmenter.predict(mixed / "wide.nii.gz", force=True).label.shape == (20, 17, 12)


def test_every_network_of_an_ensemble_is_compared_with(trained, scans, mixed):
    """A scan like those of the first network is refused where the second one has seen others."""
    image = read_image(mixed / "like.nii.gz")
    near = load_model(trained)
    prepared = near.recipe.apply(image)
    wide = read_image(mixed / "wide.nii.gz")
    profile = measure_profile(wide, near.recipe.apply(wide).data, near.recipe.apply(wide).geometry)
    far = ScanRange.of([profile] * 99, near.recipe.channel_names)
    assert compare_scan([near.scans, None], image, prepared, force=False).notes == ()
    for ranges in ([near.scans, far], [far, near.scans]):
        with pytest.raises(DataError, match="unlike the 99 scans that the run was trained on"):
            compare_scan(ranges, image, prepared, force=False)
    assert compare_scan([None, None], image, prepared, force=False).distance is None


def test_finetune_says_how_many_scans_are_unlike_those_of_the_encoder(shapes_store, capsys):
    store = open_store(shapes_store)
    profiles = [case.profile for case in store.cases]
    near_range = ScanRange.of(profiles, store.recipe.channel_names)
    far = dataclasses.replace(profiles[0], spacing_mm=(9.0,) * 3, extent=(999.0,) * 3)
    far_range = ScanRange.of([far] * 9, store.recipe.channel_names)
    for scans_of_encoder, said in (
        (far_range, f"{len(profiles)} of {len(profiles)}"),
        (near_range, ""),
    ):
        card = SimpleNamespace(scans=scans_of_encoder.to_dict(), in_channels=1)
        finetune._report_unlike(SimpleNamespace(card=card), store)
        printed = capsys.readouterr().err
        assert (f"{said} scans, extent" in printed) == bool(said)


def test_a_range_that_was_damaged_by_hand_is_damage_of_the_card(run, scans, mixed, tmp_path):
    add_range(run, scans, extent=[["a"]])
    with pytest.raises(WeightsError, match=r"network\.json: damaged"):
        predict(Predict(run=run, scans=mixed, out=tmp_path / "out"))


CT = {"kind": "ct", "lower": -900.0, "upper": 400.0, "mean": -100.0, "std": 250.0}


def a_ct():
    """A body of -50 to 60 HU with bone and lung in air, int16."""
    rng = np.random.default_rng(0)
    scan = np.full((24, 24, 16), -1000.0)
    scan[4:-4, 4:-4] = rng.normal(20, 30, (16, 16, 16))
    scan[8:10, 8:10] = 700
    scan[14:18, 8:12] = -850
    return scan


def ct_run(folder):
    run = make_run(folder, channel_names=("CT",))
    path = run / "network" / "network.json"
    card = json.loads(path.read_text())
    card["recipe"]["intensity"] = [CT]
    write_checked(path, card)
    return run


@pytest.mark.fault("H3", "a CT without Hounsfield units at prediction", "refused")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        # field.md's cases: 0 is air; windowed to a byte; another unit altogether
        (lambda hu: hu + 1024, "unlike the 2 scans that the run was trained on"),
        (lambda hu: (np.clip(hu, -1000, 0) + 1000) * 0.255, "unlike the 2 scans"),
        (lambda hu: hu * 10 + 20000, "nothing of it is in the window from -900 to 400"),
    ],
)
def test_a_ct_that_is_not_in_hounsfield_units_is_refused(tmp_path, change, message):
    run = ct_run(tmp_path / "run")
    for number in range(2):
        write_scan(tmp_path / "ct" / f"{number}.nii.gz", np.roll(a_ct(), number, 0).astype("i2"))
    add_range(run, tmp_path / "ct")
    write_scan(tmp_path / "new" / "other.nii.gz", change(a_ct()).astype(np.int16))
    with pytest.raises(DataError, match="1 of 1 scans could not be predicted"):
        predict(Predict(run=run, scans=tmp_path / "new", out=tmp_path / "out"))
    (row,) = rows(tmp_path / "out" / "rejected.csv")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(row["reason"])
    predict(Predict(run=run, scans=tmp_path / "ct", out=tmp_path / "in_hu"))


def test_a_clipped_ct_is_noted_even_if_nothing_is_known_of_the_training(tmp_path):
    run = ct_run(tmp_path / "run")
    write_scan(tmp_path / "new" / "shifted.nii.gz", (a_ct() + 1024).astype(np.int16))
    predict(Predict(run=run, scans=tmp_path / "new", out=tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "cases.jsonl").read_text())
    (note,) = record["notes"]
    assert "is outside the window from -900 to 400: is it in Hounsfield units?" in note
