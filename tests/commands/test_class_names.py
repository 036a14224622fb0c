"""The names of `classes.csv` are in every table, print and page that follows."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import selfvox
from selfvox.runs.weights import read_network_card

NAMES = ("macula", "exudate")


@pytest.fixture
def eyes(tmp_path):
    """Pictures with two classes, 1 and 3, in a table."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "eyes"
    folder.mkdir()
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "subject"])
        for number in range(5):
            label = np.zeros((24, 20), np.uint8)
            label[4:12, 3:9] = 1
            label[14:20, 8:16] = 3
            grey = rng.integers(0, 60, label.shape) + 60 * label
            Image.fromarray(grey.astype(np.uint8)).save(folder / f"eye_{number}.png")
            Image.fromarray(label).save(folder / f"label_{number}.png")
            writer.writerow([f"eye_{number}.png", f"label_{number}.png", f"person_{number}"])
    (folder / "classes.csv").write_text(f"value,name\n1,{NAMES[0]}\n3,{NAMES[1]}\n")
    return folder


def test_every_table_and_page_has_the_names(eyes, tmp_path, capsys):
    table = eyes / "table.csv"
    network = {"name": "plain", "channels": [4, 8]}
    run = selfvox.finetune(
        table, out=tmp_path / "run", encoder="none", steps=2, labels=3, crop=(16, 16),
        network=network, device="cpu", workers=1, keep="best",
    )  # fmt: skip
    out = tmp_path / "predictions"
    maps = ("entropy", "percentiles")
    selfvox.predict(run, table, out=out, passes=3, maps=maps, device="cpu")
    capsys.readouterr()
    selfvox.evaluate(out, table, out=tmp_path / "scores.csv")
    printed = "".join(capsys.readouterr())
    index = selfvox.report(out, out=tmp_path / "report")
    fine_tuning = selfvox.report(run, out=tmp_path / "report-of-run")
    assert json.loads((out / "classes.json").read_text()) == {
        "0": "background", "1": NAMES[0], "3": NAMES[1],
    }  # fmt: skip
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert {(row["class"], row["name"]) for row in csv.DictReader(file)} == {
            ("1", NAMES[0]),
            ("3", NAMES[1]),
        }
    for name in NAMES:
        for text in (
            printed,
            (out / "review.csv").read_text().splitlines()[0],
            (run / "network" / "validation.csv").read_text().splitlines()[0],
            (run / "metrics.jsonl").read_text(),
            index.read_text(),
            fine_tuning.read_text(),
        ):
            assert name in text
    assert "class 1" not in printed + index.read_text()


GRADES = {0: "no disease", 2: "moderate (NPDR)", 3: "severe"}


@pytest.fixture
def graded_eyes(tmp_path):
    """Pictures with grades, in a table."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "graded"
    folder.mkdir()
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "grade", "subject"])
        for number in range(12):
            grade = list(GRADES)[number % 3]
            grey = rng.integers(0, 60, (20, 20)) + 60 * grade
            Image.fromarray(grey.astype(np.uint8)).save(folder / f"eye_{number}.png")
            writer.writerow([f"eye_{number}.png", grade, f"person_{number}"])
    return folder


def classify(table, out):
    """The printed scores of a few steps, and the folders of run, predictions and reports."""
    run = selfvox.finetune(
        table, out=out / "run", encoder="none", steps=2, labels=6, crop=(16, 16),
        network={"name": "plain", "channels": [4, 8]}, device="cpu", workers=1,
    )  # fmt: skip
    selfvox.predict(run, table, out=out / "predictions", passes=3, device="cpu")
    selfvox.evaluate(out / "predictions", table, out=out / "scores.csv")
    selfvox.report(out / "predictions", out=out / "report")
    selfvox.report(run, out=out / "report-of-run")
    return run


def test_grades_have_the_names_in_every_table_and_page(graded_eyes, tmp_path, capsys):
    names = "".join(f"{value},{name}\n" for value, name in GRADES.items())
    (graded_eyes / "classes.csv").write_text(f"value,name\n{names}")
    run = classify(graded_eyes / "table.csv", tmp_path)
    printed = "".join(capsys.readouterr())
    folder = tmp_path / "predictions"
    assert read_network_card(run).names == tuple(GRADES.values())
    assert json.loads((folder / "classes.json").read_text()) == {
        str(value): name for value, name in GRADES.items()
    }
    for table in (folder / "predictions.csv", folder / "review.csv"):
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 12
        assert all(row["name"] == GRADES[int(row["class"])] for row in rows)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"]]
    assert {(int(row["class"]), row["name"]) for row in rows} == set(GRADES.items())
    assert "taken_for_3" in {row["score"] for row in rows}
    for name in GRADES.values():
        assert name in printed
        assert name in (tmp_path / "report" / "index.html").read_text()
        assert name in (tmp_path / "report-of-run" / "index.html").read_text()
    classifier = selfvox.load_classifier(run)
    scan = classifier.predict(graded_eyes / "eye_0.png")
    assert (classifier.classes, classifier.names) == (("0", "2", "3"), tuple(GRADES.values()))
    assert scan.name == GRADES[int(scan.value)]


def test_grades_without_names_are_called_as_they_are(graded_eyes, tmp_path, capsys):
    (graded_eyes / "classes.csv").write_text("value,name\n3,severe\n")
    run = classify(graded_eyes / "table.csv", tmp_path)
    assert read_network_card(run).names == ("0", "2", "severe")
    assert "background" not in "".join(capsys.readouterr())
