"""Classes that no data set declares: reported, and refused where they can hardly be meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.data.formats.label_values import check_undeclared
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError

SHAPE = (64, 80)


def disc(seed: int) -> np.ndarray:
    centre = np.random.default_rng(seed).uniform(20, 44, 2)
    return np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T <= 12


def write(root: Path, masks: list[np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        rng = np.random.default_rng(number)
        picture = np.clip(90 + rng.normal(0, 6, SHAPE) + 130 * disc(number), 0, 255)
        Pillow.fromarray(picture.astype(np.uint8)).save(root / f"images/p{number}.png")
        Pillow.fromarray(mask.astype(np.uint8)).save(root / f"masks/p{number}.png")
    return root


def smoothed(mask: np.ndarray) -> np.ndarray:
    large = Pillow.fromarray(mask.astype(np.uint8) * 255).resize((160, 128))
    return np.asarray(large.resize((80, 64), Pillow.Resampling.LANCZOS))


@pytest.mark.fault("H8", "label values that nobody declared", "printed with how often they occur")
def test_the_values_of_the_labels_are_reported_with_how_often_they_occur(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [disc(number) * (1 + number // 3) for number in range(4)]
    selfvox.prepare(write(tmp_path / "in", masks), out=tmp_path / "store")
    assert "classes by the values of 4 labels: 0, 1 (in 3), 2 (in 1)" in capsys.readouterr().err
    assert sorted(open_store(tmp_path / "store").classes) == [0, 1, 2]


@pytest.mark.fault("H8 P5", "anti-aliased masks", "refused")
def test_masks_with_smoothed_edges_are_refused(tmp_path: Path) -> None:
    """54 values of such masks became classes."""
    mask = smoothed(disc(0))
    assert len(np.unique(mask)) > 20
    masks = [mask, *[disc(number) * 255 for number in (1, 2)]]
    selfvox.prepare(write(tmp_path / "in", masks), out=tmp_path / "store")
    assert [case.id for case in open_store(tmp_path / "store").cases] == ["p1", "p2"]
    rejected = (tmp_path / "store/rejected.csv").read_text()
    assert "masks/p0.png: a mask of 0 and 255 with" in rejected
    assert "smoothed by a drawing program" in rejected


@pytest.mark.fault("H8", "masks of 0/1 among masks of 0/255", "a question")
def test_masks_of_0_and_1_among_masks_of_0_and_255_are_a_question(tmp_path: Path) -> None:
    masks = [disc(number) * (255 if number % 2 else 1) for number in range(4)]
    with pytest.raises(DataError, match="2 labels have the class 1, 2 have 255, none has both"):
        selfvox.prepare(write(tmp_path / "in", masks), out=tmp_path / "store")
    # both in one label are two classes
    masks[0][:5, :5] = 255
    write(tmp_path / "in", masks)
    selfvox.prepare(tmp_path / "in", out=tmp_path / "store")
    assert sorted(open_store(tmp_path / "store").classes) == [0, 1, 255]


def test_a_scan_in_place_of_a_label_is_refused() -> None:
    values = np.random.default_rng(0).integers(0, 1500, SHAPE).astype(np.uint16)
    with pytest.raises(DataError, match=r"a/b\.nii: has .* different values, more than any atlas"):
        check_undeclared(values, "a/b.nii")


@pytest.mark.parametrize(
    "label",
    [
        np.arange(105).repeat(50).reshape(-1, 50),  # an atlas
        np.where(disc(0), 15, 0) + np.where(disc(1), 240, 0),  # classes and a border, as of VOC
        smoothed(disc(0)) // 100,  # classes from 0 up
        np.zeros(SHAPE, int),
    ],
)
def test_a_label_of_classes_is_none_of_these(label: np.ndarray) -> None:
    assert check_undeclared(label.astype(np.uint8), "a") == []


def test_a_label_with_a_white_background_is_noted() -> None:
    """As those of the optic disc and cup in REFUGE: 255, 128 and 0."""
    label = np.where(disc(0), 128, 255).astype(np.uint8)
    assert check_undeclared(label, "a") == [
        "most of its label is 255, while 0 counts as the background"
    ]
