"""Predictions are on the grid of their scan; a stopped batch continues to the same bytes."""

import csv
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Pillow

import selfvox
from selfvox.cli import main
from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.data.preparation import prepare_case
from selfvox.data.sources import Case
from selfvox.errors import BusyError, DataError, Stopped, UsageError, WeightsError
from selfvox.prediction import scan_segmenter, segmentation_job
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.output_folder import OutputFolder
from selfvox.runs import progress
from selfvox.settings.verbs import Evaluate, Predict
from selfvox.settings.verbs.predict import MAPS

from ..conftest import CLASSES, affine, blob, content, make_run, write_scan

GRIDS = {
    "straight": affine(),
    "flipped": affine(signs=(-1, 1, -1)),
    "permuted": affine(axes=(2, 0, 1), signs=(1, -1, 1)),
    "oblique": affine(turn=0.4),
    "oblique, permuted and flipped": affine(turn=-0.7, axes=(1, 2, 0), signs=(-1, -1, 1)),
}


def bright(network):
    """Logits that favour class 1 where the prepared scan is above its own mean."""

    def logits(x):
        return torch.cat([-x[:, :1], x[:, :1], torch.full_like(x[:, :1], -100)], 1)

    return logits


@pytest.fixture
def thresholding(monkeypatch):
    """A network that thresholds its input, so that its prediction is known voxel by voxel."""
    for name in ("segment_scan", "segment_parts"):
        real = getattr(scan_segmenter, name)
        thresholded = lambda network, *rest, real=real, **how: real(bright(network), *rest, **how)  # noqa: E731
        monkeypatch.setattr(scan_segmenter, name, thresholded)


@pytest.mark.parametrize("matrix", GRIDS.values(), ids=GRIDS)
def test_a_prediction_has_the_grid_of_its_scan(run, tmp_path, matrix):
    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)), matrix)
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out"))
    original = nib.load(scan)
    prediction = nib.load(path)
    assert path == tmp_path / "out" / "a.nii.gz"
    assert prediction.shape == original.shape
    (names,) = prediction.header.extensions
    assert all(f">{name}</Label>".encode() in names.content for name in CLASSES.values())
    np.testing.assert_array_equal(prediction.affine, original.affine)
    for field in (
        "pixdim",
        "sform_code",
        "qform_code",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(prediction.header[field], original.header[field])
    assert set(np.unique(prediction.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("matrix", GRIDS.values(), ids=GRIDS)
def test_a_thresholding_network_gives_the_thresholded_scan(run, tmp_path, thresholding, matrix):
    data = blob((23, 14, 19))
    scan = write_scan(tmp_path / "a.nii.gz", data, matrix)
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out", precision="fp32"))
    # the recipe's foreground is above 5 % of the robust range
    inside = data[data > 0.05 * np.percentile(data, 99.5)]
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), data > inside.mean())


@pytest.mark.parametrize(
    "how", [{"spacing_mm": (1.0, 1.0, 1.0)}, {"size": (24, 24, 24)}], ids=["spacing", "size"]
)
@pytest.mark.parametrize("matrix", GRIDS.values(), ids=GRIDS)
def test_a_resampling_recipe_brings_a_surface_back_to_where_it_is(
    tmp_path, thresholding, matrix, how
):
    at = np.indices((23, 30, 19)).astype(np.float64)
    data = 1000 * np.exp(-((at - np.array([10, 17, 8]).reshape(3, 1, 1, 1)) ** 2).sum(0) / 90)
    run = make_run(tmp_path / "run", **how)
    scan = write_scan(tmp_path / "a.nii.gz", data.astype(np.float32), matrix)
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out", precision="fp32"))
    found = np.asarray(nib.load(path).dataobj) == 1
    threshold = data[data > 0.05 * np.percentile(data, 99.5)].mean()
    # the surface may be a quarter of a voxel off, where the data rise by this much
    tolerance = (
        0.25 * np.linalg.norm(np.gradient(data), axis=0)[np.abs(data - threshold) < 50].max()
    )
    clear = np.abs(data - threshold) > tolerance
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], data[clear] > threshold)


@pytest.mark.parametrize("how", [{}, {"spacing_mm": (1.5, 1.5, 1.5)}])
def test_probabilities_sum_to_one_and_decide_the_label(tmp_path, how):
    run = make_run(tmp_path / "run", **how)
    scan = write_scan(
        tmp_path / "a.nii.gz", blob((20, 17, 12)), GRIDS["oblique, permuted and flipped"]
    )
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out", probabilities=True))
    written = nib.load(tmp_path / "out" / "a_probabilities.nii.gz")
    probabilities = written.get_fdata()
    assert probabilities.shape == (20, 17, 12, 3)
    np.testing.assert_array_equal(written.affine, nib.load(scan).affine)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), np.asarray(nib.load(path).dataobj))
    (alone,) = predict(Predict(run=run, scans=scan, out=tmp_path / "alone"))
    assert alone.read_bytes() == path.read_bytes()


def test_what_was_assumed_of_a_scan_is_noted_with_its_prediction(run, tmp_path):
    scan = nib.Nifti1Image(blob((20, 17, 12)), None)
    scan.to_filename(tmp_path / "a.nii.gz")
    for _ in range(2):  # kept, it is still there
        predict(Predict(run=run, scans=tmp_path / "a.nii.gz", out=tmp_path / "out"))
        (line,) = (tmp_path / "out" / "cases.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["notes"] == [
            "neither sform nor qform: orientation unknown, left and right may be swapped"
        ]


def test_file_names_that_say_who_it_is_are_pointed_out_by_prepare_and_predict(
    run, tmp_path, capsys
):
    scans = tmp_path / "scans"
    write_scan(scans / "a_19701231.nii.gz", blob((20, 17, 12)))
    write_scan(scans / "b.nii.gz", blob((20, 17, 12), 1))
    selfvox.prepare(scans, out=tmp_path / "store")
    assert capsys.readouterr().err.count("the file names of 1 scan have a date") == 1
    predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert capsys.readouterr().err.count("the file names of 1 scan have a date") == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_becomes_a_png_of_its_size(tmp_path, thresholding, channels):
    run = make_run(
        tmp_path / "run", spatial_dims=2, channel_names=("red", "green", "blue")[:channels]
    )
    picture = np.zeros((40, 31, 3), np.uint8)
    shades = np.random.default_rng(0).integers(230, 255, (15, 15, 1))
    picture[10:25, 5:20] = shades  # of one shade it would look like a label map
    tmp_path.joinpath("in").mkdir()
    Pillow.fromarray(picture if channels == 3 else picture[..., 0]).save(
        tmp_path / "in" / "eye.png"
    )
    (path,) = predict(
        Predict(run=run, scans=tmp_path / "in", out=tmp_path / "out", probabilities=True)
    )
    with (
        Pillow.open(path) as label,
        Pillow.open(tmp_path / "out" / "eye_probabilities.tif") as probabilities,
    ):
        np.testing.assert_array_equal(np.asarray(label), picture[..., 0] > 0)
        assert probabilities.n_frames == 3


def test_two_runs_write_the_same_bytes(run, scans, tmp_path):
    for out in ("one", "two"):
        predict(Predict(run=run, scans=scans, out=tmp_path / out, probabilities=True))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "classes.json").read_text())["2"] == "lesion"


@pytest.mark.fault("X11 X12", "names in headers of scans", "in no prediction")
def test_no_text_of_the_header_and_no_path_is_written(run, scans, tmp_path):
    predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    # the log has what was printed, and the settings what was asked for: paths as they were given
    named = {tmp_path / "out" / name for name in ("log.txt", "settings.yaml")}
    for path in set((tmp_path / "out").iterdir()) - named:
        raw = (
            bytes(nib.load(path).header.binaryblock) if path.suffix == ".gz" else path.read_bytes()
        )
        assert b"DOE^JANE" not in raw
        assert str(tmp_path).encode() not in raw


KILLED_BATCH = """
import os
import sys
from pathlib import Path

from selfvox.commands.predict import predict
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.output_folder import OutputFolder
from selfvox.settings.verbs import Predict

run, scans, out = (Path(argument) for argument in sys.argv[1:4])
scans_left = int(sys.argv[4])
record = OutputFolder.record


def record_or_die(self, case, work, **details):
    global scans_left
    if not scans_left:
        (self.path / ".1.part.x.nii.gz").write_bytes(b"half")
        os._exit(9)
    scans_left -= 1
    record(self, case, work, **details)


OutputFolder.record = record_or_die
predict(Predict(run=run, scans=scans, out=out))
"""


@pytest.mark.fault("F31", "SIGKILL while each scan is predicted", "goes on to the same bytes")
def test_a_batch_killed_at_any_scan_goes_on_to_the_same_bytes(run, scans, tmp_path):
    predict(Predict(run=run, scans=scans, out=tmp_path / "whole"))
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_BATCH, str(run), str(scans), str(out), "1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 9
    kept = (out / "scan_0.nii.gz").stat().st_mtime_ns
    predict(Predict(run=run, scans=scans, out=out))
    assert content(out) == content(tmp_path / "whole")
    assert (out / "scan_0.nii.gz").stat().st_mtime_ns == kept


@pytest.mark.fault(
    "F31",
    "SIGTERM during a prediction",
    "what is finished stays, the lost scan is named",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_at_once_and_what_is_finished_stays(
    run, scans, tmp_path, monkeypatch, number
):
    real = scan_segmenter.segment_parts
    calls = []
    went_on = []

    def stopped_in_the_second_scan(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
            went_on.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(scan_segmenter, "segment_parts", stopped_in_the_second_scan)
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert (len(calls), went_on) == (2, [])
    assert stopped.value.exit_code == 128 + number
    lost = "scan_1.nii.gz was being worked on and is lost; 1 of 3 scans are done"
    assert lost in str(stopped.value)
    assert lost in (tmp_path / "out" / "log.txt").read_text()
    assert [path.name for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["scan_0.nii.gz"]
    assert not list((tmp_path / "out").glob(".*.part.*"))
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize(
    "how", [{}, {"passes": 3, "encoder_dropout": 0.3}, {"probabilities": True}]
)
def test_progress_is_shown_within_a_scan(run, tmp_path, monkeypatch, capsys, how):
    seconds = itertools.count(step=11)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    scan = write_scan(tmp_path / "ct.nii.gz", blob((60, 50, 40)))
    predict(Predict(run=run, scans=scan, out=tmp_path / "out", **how))
    shares = re.findall(r"predict  0/1  (\d+) % of ct  ", capsys.readouterr().err)
    assert len(shares) > 2
    assert shares == sorted(shares, key=int)
    assert shares[-1] == "100"


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_single_pass_names_what_several_would_say(
    run, scans, tmp_path, monkeypatch, capsys, calibrated
):
    monkeypatch.setattr(segmentation_job, "is_calibrated", lambda _: calibrated)
    predict(Predict(run=run, scans=scans, out=tmp_path / "once"))
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("--passes 20 names the predictions to review first") == 1
    assert ("with the predicted Dice of each class" in printed) == calibrated
    predict(Predict(run=run, scans=scans, out=tmp_path / "twice", passes=2, encoder_dropout=0.3))
    assert "--passes 20 names" not in " ".join(capsys.readouterr().err.split())


def test_finished_predictions_are_not_made_again(run, scans, tmp_path, monkeypatch, capsys):
    first = predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    before = content(tmp_path / "out")
    monkeypatch.setattr(scan_segmenter, "segment_parts", None)
    assert predict(Predict(run=run, scans=scans, out=tmp_path / "out")) == first
    assert content(tmp_path / "out") == before
    said = capsys.readouterr().err
    assert "3 of 3 predictions exist already" in said
    assert "not among these" not in said
    # one of them alone: what the folder has of the others is mentioned
    predict(Predict(run=run, scans=sorted(scans.iterdir())[-1], out=tmp_path / "out"))
    name = first[0].name.partition(".")[0]
    said = capsys.readouterr().err
    assert f"has 2 predictions of scans that are not among these, such as {name}" in said


@pytest.mark.fault("F27", "a damaged prediction", "made again")
def test_a_damaged_prediction_is_made_again_and_a_corrected_one_kept(run, scans, tmp_path, capsys):
    first, second, _ = predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    corrected = nib.Nifti1Image(np.ones((20, 17, 12), np.uint8), nib.load(second).affine)
    nib.save(corrected, second)
    by_hand = second.read_bytes()
    predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert first.read_bytes() == whole
    assert second.read_bytes() == by_hand
    said = capsys.readouterr().err
    assert "scan_0.nii.gz: damaged" in said
    assert "scan_1.nii.gz: was changed" in said


def test_a_corrected_label_is_kept_though_its_probabilities_are_gone(run, scans, tmp_path, capsys):
    how = {"run": run, "scans": scans, "out": tmp_path / "out", "probabilities": True}
    first, second, _ = predict(Predict(**how))
    nib.save(nib.Nifti1Image(np.ones((20, 17, 12), np.uint8), nib.load(first).affine), first)
    by_hand = first.read_bytes()
    for label in (first, second):
        label.with_name(label.name.replace(".nii.gz", "_probabilities.nii.gz")).unlink()
    predict(Predict(**how))
    assert first.read_bytes() == by_hand
    assert not (tmp_path / "out" / "scan_0_probabilities.nii.gz").exists()
    assert (tmp_path / "out" / "scan_1_probabilities.nii.gz").exists()
    assert (
        "scan_0.nii.gz: was changed since it was predicted; kept as it is"
        in capsys.readouterr().err
    )


@pytest.mark.fault("F25b", "two processes predict into one folder", "the second is refused")
def test_a_folder_that_another_process_predicts_into_is_left_alone(run, scans, tmp_path):
    with (
        OutputFolder(CaseFiles(tmp_path / "out")).lock(),
        pytest.raises(BusyError, match="name another --out"),
    ):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]


@pytest.mark.parametrize("name", ["review.csv", "classes.json"])
def test_tables_of_somebody_else_are_not_written_over(run, scans, tmp_path, name):
    table = tmp_path / "out" / name
    table.parent.mkdir()
    table.write_text("mine")
    with pytest.raises(UsageError, match="was not predicted by this run"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert table.read_text() == "mine"


@pytest.mark.fault("F23", "a scan too large for the memory", "rejected, the others are predicted")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError,
        MemoryError,
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_scan_that_memory_has_no_room_for_is_rejected_and_the_others_are_predicted(
    run, scans, tmp_path, monkeypatch, error
):
    asked = []
    plain = scan_segmenter.segment_parts

    def full_once(*given, **how):
        asked.append(given)
        if len(asked) == 2:
            raise error
        return plain(*given, **how)

    monkeypatch.setattr(scan_segmenter, "segment_parts", full_once)
    with pytest.raises(DataError, match="1 of 3 scans could not be predicted"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert [(tmp_path / "out" / f"scan_{number}.nii.gz").exists() for number in range(3)] == [
        True,
        False,
        True,
    ]
    assert "memory" in (tmp_path / "out" / "rejected.csv").read_text()


def test_any_other_failure_is_not_taken_for_full_memory(run, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(
        scan_segmenter, "segment_parts", mock.Mock(side_effect=RuntimeError("shapes"))
    )
    with pytest.raises(RuntimeError, match="shapes"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))


def test_a_voter_that_was_trained_on_the_test_subjects_is_refused(run, scans, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    asked = {"run": run, "scans": scans, "ensemble": (other,), "subset": "test"}
    assert len(predict(Predict(**asked, out=tmp_path / "same"))) == 2
    for part in ("train", "validation"):
        split = {"train": [], "validation": [], "test": ["scan_0"], "seed": 0} | {part: ["scan_2"]}
        (other / "split.json").write_text(json.dumps(split))
        with pytest.raises(
            UsageError,
            match=r"other: has seen 1 of the 2 test subjects, such as scan_2; leave it out",
        ):
            predict(Predict(**asked, out=tmp_path / part))
    assert len(predict(Predict(**(asked | {"subset": "all"}), out=tmp_path / "all"))) == 3


def test_a_folder_of_another_run_or_of_other_scans_is_refused(run, scans, tmp_path):
    out = tmp_path / "out"
    predict(Predict(run=run, scans=scans, out=out))
    before = content(out)
    other = make_run(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="another run"):
        predict(Predict(run=other, scans=scans, out=out))
    with pytest.raises(UsageError, match=r"overlap 0\.5, not 0\.25"):
        predict(Predict(run=run, scans=scans, out=out, overlap=0.25))
    assert content(out) == before


@pytest.mark.fault("H14", "another scan of a name that was predicted", "a case of its own")
def test_another_scan_of_the_same_name_is_a_case_of_its_own(run, scans, tmp_path, capsys):
    out = tmp_path / "out"
    first = predict(Predict(run=run, scans=scans, out=out))
    before = content(out)
    write_scan(scans / "scan_1.nii.gz", blob((20, 17, 12), 9))
    second = predict(Predict(run=run, scans=scans, out=out))
    printed = capsys.readouterr().err
    (new,) = set(second) - set(first)
    assert re.fullmatch(r"scan_1~[0-9a-f]{8}\.nii\.gz", new.name)
    assert f"predicted as {new.name.removesuffix('.nii.gz')} (--replace replaces it)" in printed
    assert [second[0], second[2]] == [first[0], first[2]]
    # nothing of the earlier predictions has changed
    after = content(out)
    assert {name: after[name] for name in before if name != "cases.jsonl"} == {
        name: before[name] for name in before if name != "cases.jsonl"
    }
    # it is the prediction of this scan, and is kept
    (alone,) = predict(Predict(run=run, scans=scans / "scan_1.nii.gz", out=tmp_path / "alone"))
    assert new.read_bytes() == alone.read_bytes()
    assert predict(Predict(run=run, scans=scans, out=out)) == second
    assert "3 of 3 predictions exist already" in capsys.readouterr().err


def test_another_scan_of_the_same_name_replaces_the_prediction_on_request(run, scans, tmp_path):
    out = tmp_path / "out"
    first = predict(Predict(run=run, scans=scans, out=out))
    write_scan(scans / "scan_1.nii.gz", blob((20, 17, 12), 9))
    # a label that was corrected is never overwritten
    write_scan(scans / "scan_2.nii.gz", blob((20, 17, 12), 8))
    nib.save(nib.Nifti1Image(np.ones((20, 17, 12), np.uint8), nib.load(first[2]).affine), first[2])
    by_hand = first[2].read_bytes()
    second = predict(Predict(run=run, scans=scans, out=out, replace=True))
    assert second[:2] == first[:2]
    assert second[2].name.startswith("scan_2~")
    assert first[2].read_bytes() == by_hand
    fresh = predict(Predict(run=run, scans=scans, out=tmp_path / "fresh"))
    assert [path.read_bytes() for path in second] == [path.read_bytes() for path in fresh]
    records = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]
    assert len([record for record in records if record["id"] == "scan_1"]) == 1


@pytest.mark.fault("C15", "the folder of the scans as --out", "refused")
def test_the_scans_themselves_are_never_overwritten(run, scans):
    before = content(scans)
    for given, out in ((scans / "scan_0.nii.gz", scans), (scans, scans), (scans, scans / "out")):
        with pytest.raises(UsageError, match="name another --out"):
            predict(Predict(run=run, scans=given, out=out))
    assert content(scans) == before


def test_files_of_the_same_name_that_were_not_predicted_are_not_overwritten(run, scans, tmp_path):
    truth = write_scan(
        tmp_path / "truth" / "scan_2.nii.gz", np.ones((20, 17, 12), np.uint8)
    ).read_bytes()
    with pytest.raises(UsageError, match=r"scan_2\.nii\.gz: exists"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "truth"))
    assert (tmp_path / "truth" / "scan_2.nii.gz").read_bytes() == truth


def test_a_record_says_where_when_and_at_which_cost_a_scan_was_predicted(run, scans, tmp_path):
    (scans / "later").mkdir()
    (scans / "scan_2.nii.gz").rename(scans / "later" / "scan_2.nii.gz")
    (scans / "later" / "torn.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match="1 of 4 scans"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    lines = (tmp_path / "out" / "cases.jsonl").read_text().splitlines()
    records = {record["id"]: record for record in map(json.loads, lines)}
    assert [record["file"] for record in records.values()] == [
        "scan_0.nii.gz",
        "scan_1.nii.gz",
        "later/scan_2.nii.gz",
    ]
    work = records["scan_2"]["work"]
    assert work["run"] == "run"
    assert work["device"].startswith("cpu, ")
    assert work["selfvox"] == selfvox.__version__
    assert work["torch"] == torch.__version__.split("+")[0] or work["torch"] == torch.__version__
    assert 0 < work["seconds"] < 60
    assert 0.1 < work["peak_memory_gb"] < 20
    age = datetime.now(UTC) - datetime.strptime(work["finished"], "%Y-%m-%dT%H:%M:%S%z")
    assert abs(age.total_seconds()) < 600
    with (tmp_path / "out" / "rejected.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["file"]) == ("torn", "later/torn.nii.gz")
    assert row["reason"].startswith("the contents are not gzip")
    assert {"finished", "seconds", "peak memory gb", "run", "device", "torch"} <= set(row)


def test_scans_that_trained_the_run_are_predicted_with_a_warning(run, scans, tmp_path, capsys):
    # scan_0 by its subject; scan_2 by its contents, under another name
    digest = prepare_case.image_hash(Case("x", "x", (scans / "scan_2.nii.gz",)))
    seen = {"subjects": ["scan_0"], "image_hashes": [digest]}
    (run / "run.json").write_text(json.dumps({"data": seen, "status": "finished"}))
    (run / "split.json").unlink()
    (scans / "scan_2.nii.gz").rename(scans / "new.nii.gz")
    out = tmp_path / "out"
    predict(Predict(run=run, scans=scans, out=out))
    assert (
        "2 of 3 scans, such as new, or scans of their subjects trained" in capsys.readouterr().err
    )
    truth = tmp_path / "truth"
    shutil.copytree(out, truth)
    (truth / "new.nii.gz").unlink()
    evaluate(Evaluate(predictions=out, truth=truth))
    assert "1 of 2 scored scans, such as scan_0" in capsys.readouterr().err
    predict(Predict(run=run, scans=scans, out=out, subset="unlabelled"))
    (scans / "scan_0.nii.gz").unlink()
    (scans / "new.nii.gz").unlink()
    capsys.readouterr()
    predict(Predict(run=run, scans=scans, out=out))
    assert "trained the run:" not in capsys.readouterr().err


@pytest.mark.parametrize("matrix", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(
    ("scan_ending", "format"),
    [("nii.gz", "nii.gz"), ("nrrd", "nrrd"), ("mha", "mha"), ("nrrd", "mha"), ("nii.gz", "nrrd")],
)
def test_filters_of_simpleitk_accept_a_scan_with_its_prediction(
    run, tmp_path, matrix, scan_ending, format
):
    # far from the origin, where float32 has no room for a millionth of a voxel
    far = matrix.copy()
    far[:3, 3] += (-181.123456789, 207.987654321, -903.111111111)
    nifti = write_scan(tmp_path / "nifti" / "ct.nii.gz", blob((20, 17, 12)), far)
    scan = tmp_path / f"ct.{scan_ending}"
    image = sitk.ReadImage(str(nifti))
    if scan_ending == "nii.gz":
        scan = nifti
    else:
        image.SetOrigin([edge + 1 / 3 for edge in image.GetOrigin()])
        sitk.WriteImage(image, str(scan))
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out", format=format))
    assert path.name == f"ct.{format}"
    mask = sitk.ReadImage(str(path))
    statistics = sitk.LabelStatisticsImageFilter()
    # raises where the two do not occupy the same physical space
    statistics.Execute(sitk.ReadImage(str(scan)), mask)
    assert sum(statistics.GetCount(value) for value in statistics.GetLabels()) == 20 * 17 * 12
    plain = predict(Predict(run=run, scans=scan, out=tmp_path / "plain"))[0]
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(sitk.ReadImage(str(plain)))
    )


def test_labels_in_another_format_are_evaluated_and_kept(run, scans, tmp_path, capsys):
    how = {"run": run, "scans": scans, "out": tmp_path / "out", "probabilities": True}
    paths = predict(Predict(**how, format="nrrd"))
    assert [path.name for path in paths] == [f"scan_{number}.nrrd" for number in range(3)]
    assert (tmp_path / "out" / "scan_0_probabilities.nii.gz").exists()
    predict(Predict(run=run, scans=scans, out=tmp_path / "truth"))
    rows = evaluate(Evaluate(predictions=tmp_path / "out", truth=tmp_path / "truth"))
    assert {row["dice"] for row in rows} == {1.0}
    assert predict(Predict(**how, format="nrrd")) == paths
    with pytest.raises(UsageError, match="label_format nrrd, not None"):
        predict(Predict(**how))


def test_the_size_of_maps_is_printed_before_they_are_written(tmp_path, capsys):
    run = make_run(tmp_path / "run", regions={"both": [1, 2]})
    scan = write_scan(tmp_path / "ct.nii.gz", blob((30, 20, 10)))
    how = {"passes": 4, "encoder_dropout": 0.3, "maps": MAPS, "probabilities": True}
    predict(Predict(run=run, scans=scan, out=tmp_path / "out", **how))
    (line,) = re.findall("a scan of 30 x 20 x 10 .*", capsys.readouterr().err)
    numbers = dict(re.findall(r"(\w+),? (?:of )?([\d.]+) MB", line))
    maps = [nib.load(path) for path in (tmp_path / "out" / "maps").glob("*.nii.gz")]
    assert {written.get_data_dtype() for written in maps} == {np.dtype(np.uint16)}
    expected = sum(2 * np.prod(written.shape) for written in maps)
    assert float(numbers["maps"]) == pytest.approx(expected / 1e6, rel=0.01)
    assert float(numbers["probabilities"]) == pytest.approx(4 * 3 * 6000 / 1e6, rel=0.01)
    assert float(numbers["passes"]) <= 4 * 3 * 6000 / 1e6


def test_the_log_has_every_line_with_its_time_also_where_nothing_is_printed(
    run, scans, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["predict", str(run), str(scans), "--out", str(out), "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().err.splitlines()
    lines = (out / "log.txt").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}  "
    assert [re.sub(stamp, "", line, count=1) for line in lines] == printed
    assert all(re.match(stamp, line) for line in lines)
    (scans / "torn.nii.gz").write_bytes(b"no scan")
    assert main([*words, "--quiet"]) == 3
    (error,) = capsys.readouterr().err.splitlines()
    assert "1 of 4 scans could not be predicted" in error
    later = (out / "log.txt").read_text().splitlines()
    assert later[: len(lines)] == lines
    assert "1 of 4 scans could not be predicted" in later[-1]
    assert any("torn.nii.gz: " in line for line in later[len(lines) :])


@pytest.mark.parametrize("status", ["stopped", "failed", "running"])
def test_a_run_that_was_stopped_early_predicts_with_a_warning(run, scans, tmp_path, capsys, status):
    record = {"status": status, "steps": 40, "data": {"subjects": [], "image_hashes": []}}
    (run / "run.json").write_text(json.dumps(record))
    predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    expected = f"its training is not finished ({status}); this network is of step 1 of 40"
    assert expected in capsys.readouterr().err


def test_the_subset_of_unlabelled_scans_is_what_has_no_label(run, scans, tmp_path):
    (tmp_path / "data").mkdir()
    scans.rename(tmp_path / "data" / "images")
    write_scan(tmp_path / "data" / "labels" / "scan_1.nii.gz", np.ones((20, 17, 12), np.uint8))
    how = {"run": run, "scans": tmp_path / "data", "subset": "unlabelled"}
    paths = predict(Predict(**how, out=tmp_path / "out"))
    assert [path.name for path in paths] == ["scan_0.nii.gz", "scan_2.nii.gz"]
    for name in ("scan_0", "scan_2"):
        (tmp_path / "data" / "images" / f"{name}.nii.gz").unlink()
    with pytest.raises(DataError, match="all 1 scans have a label; leave --subset out"):
        predict(Predict(**how, out=tmp_path / "none"))


@pytest.mark.fault(
    "F14 X8",
    "damaged and constant scans, one named as a formula",
    "named, the others are predicted",
)
def test_bad_scans_are_named_and_the_others_predicted(run, scans, tmp_path, capsys):
    (scans / "=cmd().nii.gz").write_bytes(b"no scan")
    write_scan(scans / "flat.nii.gz", np.ones((9, 9, 9), np.int16))
    with pytest.raises(DataError, match="2 of 5 scans"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        f"scan_{n}.nii.gz" for n in range(3)
    }
    with (tmp_path / "out" / "rejected.csv").open() as file:
        rows = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"'=cmd()", "flat"}
    assert "same value everywhere" in rows["flat"]
    assert "flat.nii.gz: " in capsys.readouterr().err
    for bad in ("=cmd()", "flat"):
        (scans / f"{bad}.nii.gz").unlink()
    predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
    assert not (tmp_path / "out" / "rejected.csv").exists()


def test_scans_with_other_channels_are_refused_by_name(tmp_path):
    run = make_run(tmp_path / "run", channel_names=("T1", "FLAIR"))
    for case in ("a", "b"):
        for number in range(3):
            write_scan(
                tmp_path / "raw" / "imagesTr" / f"{case}_{number:04}.nii.gz",
                blob((20, 17, 12), number),
            )
        write_scan(
            tmp_path / "raw" / "labelsTr" / f"{case}.nii.gz", np.ones((20, 17, 12), np.uint8)
        )
    names = {
        "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"},
        "labels": {"background": 0, "organ": 1},
    }
    (tmp_path / "raw" / "dataset.json").write_text(
        json.dumps({**names, "numTraining": 2, "file_ending": ".nii.gz"})
    )
    with pytest.raises(DataError, match=r"T1, T2, FLAIR where the run was trained on T1, FLAIR"):
        predict(Predict(run=run, scans=tmp_path / "raw", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_scan_with_two_channels_in_one_file_is_predicted(tmp_path):
    run = make_run(tmp_path / "run", channel_names=("T1", "FLAIR"))
    both = np.stack([blob((20, 17, 12), 1), blob((20, 17, 12), 2)], -1)
    scan = write_scan(tmp_path / "a.nii.gz", both)
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out"))
    assert nib.load(path).shape == (20, 17, 12)
    single = write_scan(tmp_path / "b.nii.gz", both[..., 0])
    with pytest.raises(DataError, match="1 of 1"):
        predict(Predict(run=run, scans=single, out=tmp_path / "other"))


def test_a_subset_is_what_the_run_says_and_a_list_is_a_list(run, scans, tmp_path):
    test = predict(Predict(run=run, scans=scans, out=tmp_path / "test", subset="test"))
    assert [path.name for path in test] == ["scan_1.nii.gz", "scan_2.nii.gz"]
    (scans / "few.txt").write_text("scan_2.nii.gz\n")
    listed = predict(Predict(run=run, scans=scans / "few.txt", out=tmp_path / "listed"))
    assert [path.read_bytes() for path in listed] == [test[1].read_bytes()]
    with pytest.raises(DataError, match="none of the run's 0 validation subjects"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "none", subset="validation"))


def test_a_smaller_scan_than_the_window_is_predicted(run, tmp_path):
    scan = write_scan(tmp_path / "a.nii.gz", blob((7, 9, 5)))
    (path,) = predict(Predict(run=run, scans=scan, out=tmp_path / "out"))
    assert nib.load(path).shape == (7, 9, 5)


@pytest.mark.fault("K1 F11", "networks missing, cut, changed", "refused")
def test_a_run_without_an_intact_network_is_refused(run, scans, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"has no network\.json"):
        predict(Predict(run=tmp_path / "empty", scans=scans, out=tmp_path / "out"))
    weights = run / "network" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="checksum"):
        predict(Predict(run=run, scans=scans, out=tmp_path / "out"))
