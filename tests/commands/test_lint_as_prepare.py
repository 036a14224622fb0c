"""`lint` refuses the labels that `prepare` refuses, and notes what `prepare` notes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.cli import main
from selfvox.data import phantom
from selfvox.data.preparation.store import open_store

GRID = (64, 80)


def disc(number: int) -> np.ndarray:
    """(row, column) booleans: a disc at a random place."""
    centre = np.random.default_rng(number).uniform(20, 44, 2)
    return np.linalg.norm(np.indices(GRID).T - centre, axis=-1).T <= 12


def write_pictures(root: Path, mask_of: Callable[[int], np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(6):
        noise = np.random.default_rng(number).normal(0, 6, GRID)
        picture = np.clip(90 + noise + 130 * disc(number), 0, 255)
        Pillow.fromarray(picture.astype(np.uint8)).save(root / f"images/p{number}.png")
        Pillow.fromarray(mask_of(number)).save(root / f"masks/p{number}.png")
    return root


def smoothed(number: int) -> np.ndarray:
    large = Pillow.fromarray(disc(number).astype(np.uint8) * 255).resize((160, 128))
    return np.asarray(large.resize((80, 64), Pillow.Resampling.LANCZOS))


def write_smoothed(root: Path) -> Path:
    return write_pictures(root, smoothed)


def write_two_numbers(root: Path) -> Path:
    return write_pictures(root, lambda number: disc(number).astype(np.uint8) * (1, 255)[number % 2])


def write_sound(root: Path) -> Path:
    return write_pictures(root, lambda number: disc(number).astype(np.uint8))


def write_labels_outside(root: Path, scans: int = 3) -> Path:
    """Scans with a body in the middle, and labels of which half is at the corner."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(scans):
        image = np.zeros((20, 20, 20), np.int16)
        body = np.random.default_rng(number).normal(100, 8, (12, 12, 12))
        image[4:16, 4:16, 4:16] = body.astype(np.int16)
        label = np.zeros((20, 20, 20), np.uint8)
        label[8:11, 8:11, 8:11] = 1
        label[:3, :3, :3] = 1
        for folder, voxels in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / folder / f"c{number}.nii.gz")
    return root


def scans_with_errors(scans: Path, out: Path) -> set[str]:
    main(["lint", str(scans), "--out", str(out), "--workers", "1"])
    with (out / "findings.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["severity"] == "error"]
    return {scan for row in rows for scan in row["scans"].split()}


@pytest.mark.parametrize(
    ("write", "code"),
    [
        pytest.param(write_sound, 0, id="sound"),
        pytest.param(write_smoothed, 3, id="smoothed"),
        pytest.param(write_two_numbers, 3, id="two numbers"),
        pytest.param(write_labels_outside, 3, id="outside the scan"),
    ],
)
def test_lint_ends_with_the_exit_code_of_prepare(
    write: Callable[[Path], Path], code: int, tmp_path: Path
) -> None:
    scans = write(tmp_path / "scans")
    store = ["--out", str(tmp_path / "store"), "--workers", "1"]
    assert main(["prepare", str(scans), *store]) == code
    assert main(["lint", str(scans), "--workers", "1"]) == code


def test_lint_names_each_scan_that_prepare_rejects(tmp_path: Path) -> None:
    masks = [disc(number).astype(np.uint8) * 255 for number in range(6)]
    masks[1] = smoothed(1)
    masks[4] = smoothed(4)
    scans = write_pictures(tmp_path / "scans", lambda number: masks[number])
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    with (tmp_path / "store" / "rejected.csv").open(encoding="utf-8") as file:
        rejected = {row["id"] for row in csv.DictReader(file)}
    assert rejected == {"p1", "p4"}
    assert scans_with_errors(scans, tmp_path / "lint") == rejected


def test_rounded_labels_and_stray_voxels_are_noted_as_prepare_notes_them(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    phantom.write(scans, "shapes", count=3)
    (scans / "dataset.json").unlink()
    for number in (1, 2, 3):
        path = scans / "labels" / f"sub-00{number}.nii.gz"
        label = nib.load(path)
        values = label.get_fdata() + 3 * (label.get_fdata() == 1)  # 4 makes a slope of no integer
        header = label.header.copy()
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(values, label.affine, header), path)
    selfvox.prepare(scans, out=tmp_path / "store", workers=1)
    prepared = {note for case in open_store(tmp_path / "store").cases for note in case.notes}
    assert any("class numbers were off" in note for note in prepared)
    notes = {row["text"] for row in selfvox.lint(scans, workers=1) if row["check"] == "reading"}
    # notes that differ in numbers alone are one finding
    assert notes <= prepared
    assert any("class numbers were off" in note for note in notes)
