"""Scores in the table are those a hand calculation gives; what cannot be compared is named."""

import csv
import dataclasses
import json
import math
import statistics

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.errors import DataError, UsageError
from selfvox.settings.verbs import Evaluate, Predict

from ..conftest import affine, blob, make_run, write_scan

SPACING = (1.0, 1.2, 2.0)
SHAPE = (12, 11, 10)


def boxes(*contents):
    """A label with a class in each box, given as (value, start, stop)."""
    label = np.zeros(SHAPE, np.uint8)
    for value, start, stop in contents:
        label[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = value
    return label


@pytest.fixture
def pair(tmp_path):
    """Two cases of two classes: an organ moved by a voxel along z, and a missed lesion.

    Neither label map of the first case has a lesion.
    """
    for name, prediction, truth in (
        ("case_2", boxes((1, (2, 2, 2), (6, 6, 4))), boxes((1, (2, 2, 3), (6, 6, 5)))),
        (
            "case_10",
            boxes((1, (1, 1, 1), (9, 9, 9))),
            boxes((1, (1, 1, 1), (9, 9, 9)), (2, (3, 3, 3), (4, 5, 4))),
        ),
    ):
        write_scan(tmp_path / "predictions" / f"{name}.nii.gz", prediction)
        write_scan(tmp_path / "truth" / f"{name}.nii.gz", truth)
    return tmp_path


def test_scores_equal_a_hand_calculation(pair, capsys):
    out = pair / "tables" / "scores.csv"
    rows = evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth", out=out))
    assert [(row["case"], row["class"], row["name"]) for row in rows] == [
        ("case_2", 1, "class 1"),
        ("case_2", 2, "class 2"),
        ("case_10", 1, "class 1"),
        ("case_10", 2, "class 2"),
    ]
    voxel_ml = 1.0 * 1.2 * 2.0 / 1000
    # both plates are two voxels thick, so that all voxels are surface; half of each plate is 2 mm
    # from the other when moved by one
    assert rows[0] == pytest.approx(
        {
            "case": "case_2",
            "class": 1,
            "name": "class 1",
            "dice": 0.5,
            "hd95_mm": 2.0,
            "surface_distance_mm": 1.0,
            "predicted_volume_ml": 32 * voxel_ml,
            "true_volume_ml": 32 * voxel_ml,
        }
    )
    nothing = rows[1]
    missed = rows[3]
    assert nothing["dice"] == 1
    assert missed["dice"] == 0
    assert all(
        math.isnan(row[name])
        for row in (nothing, missed)
        for name in ("hd95_mm", "surface_distance_mm")
    )
    assert missed["true_volume_ml"] == pytest.approx(2 * voxel_ml)
    # the lesion is inside the organ: two voxels of it are missing from the truth
    assert rows[2]["dice"] == pytest.approx(2 * 510 / (512 + 510))

    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["case"] for row in table] == ["case_2", "case_2", "case_10", "case_10"]
    assert table[0]["hd95_mm"] == "2"
    assert table[1]["hd95_mm"] == ""
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    dice = [0.5, 2 * 510 / 1022]
    mean = f"{statistics.fmean(dice):.3f}"
    spread = f"{statistics.stdev(dice):.3f}"
    assert ["class", "1", "dice", mean, "±", spread, mean, "2", "of", "2"] in printed
    assert ["class", "2", "dice", "0.500", "±", "0.707", "0.500", "2", "of", "2"] in printed
    assert printed.count(["hd95", "mm", "-", "-", "0", "of", "2"]) == 1
    assert any("has Dice 1" in " ".join(line) for line in printed)


def test_a_perfect_prediction_scores_one_and_no_distance(pair):
    rows = evaluate(Evaluate(predictions=pair / "truth", truth=pair / "truth"))
    assert [row["dice"] for row in rows] == [1, 1, 1, 1]
    assert [row["hd95_mm"] for row in rows if not math.isnan(row["hd95_mm"])] == [0, 0, 0]


def test_pictures_are_scored_in_pixels(tmp_path):
    for folder, column in (("predictions", 4), ("truth", 7)):
        label = np.zeros((20, 30), np.uint8)
        label[:, column] = 1
        (tmp_path / folder).mkdir()
        Pillow.fromarray(label).save(tmp_path / folder / "eye.png")
    (row,) = evaluate(Evaluate(predictions=tmp_path / "predictions", truth=tmp_path / "truth"))
    assert row == {
        "case": "eye",
        "class": 1,
        "name": "class 1",
        "dice": 0.0,
        "hd95_px": 3.0,
        "surface_distance_px": 3.0,
        "predicted_area_px": 20.0,
        "true_area_px": 20.0,
    }


def test_names_come_from_the_predictions_and_a_class_without_voxels_has_a_row(pair):
    names = {"0": "background", "1": "organ", "2": "[red]lesion", "3": "cyst"}
    (pair / "predictions" / "classes.json").write_text(json.dumps(names))
    rows = evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth"))
    assert [row["name"] for row in rows] == ["organ", "[red]lesion", "cyst"] * 2
    assert [row["dice"] for row in rows if row["class"] == 3] == [1, 1]


def test_labels_without_a_partner_are_named_and_left_out(pair, capsys):
    write_scan(pair / "predictions" / "lonely.nii.gz", boxes())
    write_scan(pair / "truth" / "unseen_seg.nii.gz", boxes())
    rows = evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth"))
    assert {row["case"] for row in rows} == {"case_2", "case_10"}
    said = capsys.readouterr().err
    assert "1 predictions have no truth and are left out: lonely" in said
    assert "1 truths have no prediction and are left out: unseen" in said


@pytest.mark.fault(
    "H9",
    "truths with other endings than predictions",
    "matched as by the folder source",
)
@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ("", ""),
        ("", "_seg"),
        ("", "-label"),
        ("", "_segmentation"),
        ("", "_gt"),
        ("", ".seg"),
        ("_0000", ""),  # nnU-Net's channel, which its labels do not have
        ("_image", "_label"),
        ("_\N{LATIN SMALL LETTER U WITH DIAERESIS}", "_u\N{COMBINING DIAERESIS}"),
    ],
)
def test_a_truth_may_be_called_otherwise_than_its_prediction(pair, prediction, truth):
    for folder, ending in (("predictions", prediction), ("truth", truth)):
        for path in list((pair / folder).iterdir()):
            path.rename(path.with_name(path.name.replace(".nii.gz", f"{ending}.nii.gz")))
    rows = evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth"))
    assert [row["dice"] for row in rows] == pytest.approx([0.5, 1, rows[2]["dice"], 0])


def test_two_truths_of_one_prediction_are_a_question(pair):
    for path in list((pair / "truth").iterdir()):
        for rater in ("1", "2"):
            name = path.name.replace(".nii.gz", f"_manual{rater}.nii.gz")
            (pair / "truth" / name).write_bytes(path.read_bytes())
        path.unlink()
    with pytest.raises(DataError, match="may each be the truth of case_2"):
        evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth"))


def test_a_truth_on_another_grid_is_named_and_the_others_scored(pair, capsys):
    moved = affine(origin=(-31, 17.5, 5))
    write_scan(pair / "truth" / "case_10.nii.gz", boxes((1, (1, 1, 1), (9, 9, 9))), moved)
    out = pair / "scores.csv"
    with pytest.raises(DataError, match="1 of 2 cases could not be scored"):
        evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth", out=out))
    assert "case_10.nii.gz: its affine differs" in capsys.readouterr().err
    assert out.read_text().count("\n") == 2


def test_nothing_in_common_is_refused(pair):
    write_scan(pair / "others" / "x.nii.gz", boxes())
    with pytest.raises(DataError, match="such as case_2 and x"):
        evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "others"))
    with pytest.raises(UsageError, match=r"end it in \.csv"):
        evaluate(
            Evaluate(
                predictions=pair / "predictions", truth=pair / "truth", out=pair / "scores.txt"
            )
        )
    with pytest.raises(DataError, match="no such file or folder"):
        evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "absent"))


@pytest.mark.fault("X8", "a case named `=cmd()`", "a quoted cell")
def test_a_name_that_is_a_formula_is_defused(pair):
    for folder in ("predictions", "truth"):
        (pair / folder / "case_2.nii.gz").rename(pair / folder / "=1+1.nii.gz")
    out = pair / "scores.csv"
    rows = evaluate(Evaluate(predictions=pair / "predictions", truth=pair / "truth", out=out))
    assert "=1+1" in {row["case"] for row in rows}
    assert "\n=1" not in out.read_text()
    assert "\n'=1+1," in out.read_text()


def test_what_predict_writes_is_scored_against_a_data_set(tmp_path):
    run = make_run(tmp_path / "run", classes={"0": "background", "1": "organ"})
    for number in range(2):
        data = blob((20, 17, 12), number)
        write_scan(tmp_path / "data" / "images" / f"scan_{number}.nii.gz", data)
        write_scan(
            tmp_path / "data" / "labels" / f"scan_{number}.nii.gz", (data > 700).astype(np.uint8)
        )
    settings = Predict(run=run, scans=tmp_path / "data", out=tmp_path / "out", probabilities=True)
    paths = predict(settings)
    rows = evaluate(Evaluate(predictions=tmp_path / "out", truth=tmp_path / "data"))
    for row, path, number in zip(rows, paths, range(2), strict=True):
        p = np.asarray(nib.load(path).dataobj) == 1
        t = blob((20, 17, 12), number) > 700
        assert row["name"] == "organ"
        assert row["dice"] == pytest.approx(2 * np.sum(p & t) / (p.sum() + t.sum()))
        assert row["predicted_volume_ml"] == pytest.approx(p.sum() * np.prod(SPACING) / 1000)


def test_the_truth_is_read_as_its_source_says(pair):
    # a list of other cases, which auto takes first
    (pair / "data" / "images").mkdir(parents=True)
    (pair / "truth").rename(pair / "data" / "labels")
    for name in ("case_2", "case_10"):
        write_scan(pair / "data" / "images" / f"{name}.nii.gz", np.ones(SHAPE, np.float32))
    listed = {"training": [{"image": "images/case_2.nii.gz", "label": "labels/case_10.nii.gz"}]}
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "one", "2": "two"},
        **listed,
    }
    (pair / "data" / "dataset.json").write_text(json.dumps(content))
    asked = Evaluate(predictions=pair / "predictions", truth=pair / "data")
    assert {row["case"] for row in evaluate(asked)} == {"case_2"}
    rows = evaluate(dataclasses.replace(asked, source="folder"))
    assert {row["case"] for row in rows} == {"case_2", "case_10"}
    with pytest.raises(DataError, match=r"no dataset.json there"):
        evaluate(
            Evaluate(
                predictions=pair / "predictions", truth=pair / "data" / "labels", source="decathlon"
            )
        )


def test_where_nothing_has_a_class_nothing_is_scored_and_that_is_an_error(tmp_path):
    for folder in ("predictions", "truth"):
        write_scan(tmp_path / folder / "a.nii.gz", boxes())
    with pytest.raises(DataError, match="neither predictions nor truth have a class above 0"):
        evaluate(
            Evaluate(
                predictions=tmp_path / "predictions",
                truth=tmp_path / "truth",
                out=tmp_path / "scores.csv",
            )
        )
    assert not (tmp_path / "scores.csv").exists()
