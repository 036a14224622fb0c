"""The names of `classes.csv` are in every table, print and page that follows."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import selfvox

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
        for number in range(4):
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
