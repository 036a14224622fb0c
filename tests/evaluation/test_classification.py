"""Scores of predicted classes are those of a hand calculation; the table reads back as written."""

import csv

import pytest
from PIL import Image as Pillow

from selfvox.commands.evaluate import evaluate
from selfvox.errors import DataError
from selfvox.prediction import class_table
from selfvox.runs.atomic_files import write_csv
from selfvox.settings.verbs import Evaluate

HEADER = ["id", "file", "class", "probability_0", "probability_1", "probability_2"]
ROWS = [
    ["=a", "=a.png", "0", 0.8, 0.2, 0.0],
    ["b", "b.png", "1", 0.1, 0.6, 0.3],
    ["c", "c.png", "1", 0.2, 0.5, 0.3],
    ["d", "d.png", "0", 0.7, 0.2, 0.1],
]


@pytest.fixture
def data(tmp_path):
    """Four predictions of three grades, one of them wrong by two; a fifth scan has none."""
    (tmp_path / "scans").mkdir()
    for name in ("=a", "b", "c", "d", "e"):
        Pillow.new("L", (4, 4)).save(tmp_path / "scans" / f"{name}.png")
    table = "image,grade\n=a.png,0\nb.png,1\nc.png,1\nd.png,2\ne.png,0\n"
    (tmp_path / "scans" / "truth.csv").write_text(table)
    (tmp_path / "predictions").mkdir()
    write_csv(tmp_path / "predictions" / "predictions.csv", HEADER, ROWS)
    return tmp_path


def test_the_table_is_read_back_as_it_was_written(data):
    answers = class_table.read_class_table(data / "predictions" / "predictions.csv")
    assert answers.classes == ("0", "1", "2")
    assert answers.predicted == {row[0]: int(row[2]) for row in ROWS}
    assert answers.probabilities == {row[0]: row[3:] for row in ROWS}


def test_scores_are_those_of_a_hand_calculation(data, capsys):
    out = data / "tables" / "scores.csv"
    rows = evaluate(
        Evaluate(predictions=data / "predictions", truth=data / "scans" / "truth.csv", out=out)
    )
    value = {(row["score"], row["class"]): row["value"] for row in rows}
    assert value["cases", ""] == 4
    assert value["accuracy", ""] == 0.75
    # one of four is wrong by two: 4; by chance, every true grade meets every predicted one
    pairs = [(true - predicted) ** 2 for true in (0, 1, 1, 2) for predicted in (0, 1, 1, 0)]
    assert value["quadratic_kappa", ""] == pytest.approx(1 - 4 / (sum(pairs) / 4))
    assert value["balanced_accuracy", ""] == pytest.approx(2 / 3)
    assert [value["recall", name] for name in "012"] == [1, 1, 0]
    assert value["auc", "0"] == 1  # 0.8 is above all others
    assert value["auc", "2"] == pytest.approx(1 / 3)  # 0.1 beats 0.0 alone
    assert value["taken_for_0", "2"] == 1
    with out.open(newline="") as file:
        table = {(row["score"], row["class"]): row["value"] for row in csv.DictReader(file)}
    assert table["accuracy", ""] == "0.75"
    with Pillow.open(out.with_suffix(".png")) as picture:
        assert min(picture.size) > 300
    said = capsys.readouterr()
    assert "1 scans with a class have no prediction" in said.err
    assert ["2", "1", "0", "0", "0.000"] in [line.split() for line in said.out.splitlines()]


def test_an_agreement_worse_than_chance_stays_a_number_in_the_table(data):
    path = data / "predictions" / "predictions.csv"
    rows = [
        [name, file, swapped, *shares]
        for (name, file, _, *shares), swapped in zip(ROWS, "2110", strict=True)
    ]
    write_csv(path, HEADER, rows)
    out = data / "scores.csv"
    evaluate(
        Evaluate(predictions=data / "predictions", truth=data / "scans" / "truth.csv", out=out)
    )
    with out.open(newline="") as file:
        table = {(row["score"], row["class"]): row["value"] for row in csv.DictReader(file)}
    assert float(table["quadratic_kappa", ""]) < 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("class", "grade"), "columns missing"),
        ((",0.8,", ",high,"), r"line 2: class or probability missing"),
        (("c.png,1,", "c.png,7,"), r"line 4: class or probability missing"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(data, change, reason):
    path = data / "predictions" / "predictions.csv"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(DataError, match=reason):
        evaluate(Evaluate(predictions=data / "predictions", truth=data / "scans" / "truth.csv"))


def test_a_grade_the_run_does_not_know_and_other_scans_are_refused(data):
    table = data / "scans" / "truth.csv"
    table.write_text(table.read_text().replace("d.png,2", "d.png,3"))
    with pytest.raises(DataError, match="has the class '3', which the run was not trained on"):
        evaluate(Evaluate(predictions=data / "predictions", truth=table))
    table.write_text("image,grade\ne.png,0\n")
    with pytest.raises(DataError, match="no prediction is called like"):
        evaluate(Evaluate(predictions=data / "predictions", truth=table))
