"""The page of predictions of pictures: segmented ones, and classes of whole pictures."""

import csv
import gzip
import json

import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox

from ..conftest import make_run
from .conftest import Elements, volume

SHAPE = (20, 32)  # rows, columns


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(3):
        colours = rng.integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
        Pillow.fromarray(colours).save(root / "images" / f"eye_{number}.png")
    return root


def review_of(index):
    page = Elements(index.read_text(encoding="utf-8"))
    (text,) = page.text_of("script", id="review")
    return page, json.loads(text)


def test_a_segmented_picture_is_shown_upright_with_its_label(pictures, tmp_path):
    run = make_run(
        tmp_path / "run", channel_names=("red", "green", "blue"), spatial_dims=2, crop=16
    )
    selfvox.predict(run, pictures / "images", out=tmp_path / "predictions", device="cpu")
    index = selfvox.report(tmp_path / "predictions", out=tmp_path / "report")
    _, review = review_of(index)
    for case in review["cases"]:
        picture = np.asarray(Pillow.open(pictures / "images" / f"{case['id']}.png"))
        label = np.asarray(Pillow.open(tmp_path / "predictions" / f"{case['id']}.png"))
        assert label.any()
        # x to the right; y upwards, so that the last row of a picture comes first
        shown = np.asarray(volume(index.parent, case["channels"][0]["data"]).dataobj)
        colours = np.stack([shown[name] for name in "RGB"], -1)
        np.testing.assert_array_equal(colours[:, :, 0], picture[::-1].swapaxes(0, 1))
        mask = np.asarray(volume(index.parent, case["label"]).dataobj)
        np.testing.assert_array_equal(mask[:, :, 0], label[::-1].T)
        assert case["flat"]
    with gzip.open(gzip_of(index.parent, review["cases"][0]["label"]), "rb") as file:
        assert len(file.read()) == 352 + label.size


def gzip_of(folder, name):
    import base64
    import io

    text = (folder / "data" / f"{name}.js").read_text().split('"')[3]
    return io.BytesIO(base64.b64decode(text))


def test_classes_of_whole_pictures_are_listed_with_the_true_ones(pictures, tmp_path):
    table = pictures / "grades.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "grade"])
        writer.writerows([f"images/eye_{number}.png", number % 2] for number in range(3))
    run = selfvox.finetune(
        table,
        out=tmp_path / "run",
        encoder="none",
        steps=2,
        crop=(16, 16),
        network={"name": "plain", "channels": [4, 8]},
        device="cpu",
        workers=1,
    )
    selfvox.predict(run, table, out=tmp_path / "predictions", passes=4, device="cpu")
    index = selfvox.report(tmp_path / "predictions", out=tmp_path / "report")
    page, review = review_of(index)
    with (tmp_path / "predictions" / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert page.text_of("button", class_="case") == [row["case"] for row in rows]
    right = sum(int(row["case"][-1]) % 2 == int(row["class"]) for row in rows)
    assert f"The class of {right} of 3 scans with a known class is right." in page.text_of("p")
    cells = page.text_of("td", class_="number")
    assert cells == [f"{float(row['probability']):.3g}" for row in rows]
    assert len(page.text_of("td", class_="wrong")) == 3 - right
    assert all(case["channels"] and case["label"] is None for case in review["cases"])
