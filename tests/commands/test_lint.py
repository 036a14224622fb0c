"""`lint` names what is wrong with a data set, and leaves a sound one in peace."""

from __future__ import annotations

import contextlib
import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox
from selfvox.cli import main
from selfvox.data import phantom
from selfvox.errors import DataError, UsageError

from ..conftest import blob, write_scan


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def findings(scans: Path, out: Path, **settings) -> list[dict[str, str]]:
    """What `lint` finds, whether or not it ends with an error."""
    with contextlib.suppress(DataError):
        selfvox.lint(scans, out=out, workers=1, **settings)
    return rows(out / "findings.csv")


def about(found: list[dict[str, str]], check: str, severity: str) -> list[dict[str, str]]:
    return [row for row in found if (row["about"], row["severity"]) == (check, severity)]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    phantom.write(tmp_path / "scans", "shapes", count=6)
    # a plain folder: nothing but the files says what they are
    (tmp_path / "scans" / "dataset.json").unlink()
    return tmp_path / "scans"


@pytest.fixture
def a_scan(shapes: Path) -> nib.Nifti1Image:
    return nib.load(shapes / "images" / "sub-001.nii.gz")


def test_sound_scans_have_notes_alone_and_exit_code_0(shapes, capsys):
    assert main(["lint", str(shapes), "--workers", "1"]) == 0
    found = selfvox.lint(shapes, workers=1)
    assert {finding["severity"] for finding in found} == {"note"}
    printed = capsys.readouterr()
    assert "6 scans can be used, 0 cannot; 0 errors, 0 warnings" in printed.err
    # the values of the labels, with their names if there are some
    assert "label values" in printed.out


def test_nothing_is_written_without_out(shapes):
    before = sorted(shapes.rglob("*"))
    selfvox.lint(shapes, workers=1)
    assert sorted(shapes.rglob("*")) == before


def test_an_error_ends_with_exit_code_3_after_everything_was_written(shapes, tmp_path, capsys):
    (shapes / "images" / "sub-002.nii.gz").write_bytes(b"damaged")
    assert main(["lint", str(shapes), "--out", str(tmp_path / "out"), "--workers", "1"]) == 3
    assert "1 error in these scans" in capsys.readouterr().err
    (row,) = about(rows(tmp_path / "out" / "findings.csv"), "unusable", "error")
    assert row["scans"] == "sub-002"
    assert len(rows(tmp_path / "out" / "scans.csv")) == 5


def test_each_mistake_is_named_with_its_scan(shapes, a_scan, tmp_path):
    images = shapes / "images"
    data = np.asarray(a_scan.dataobj)
    # 1 under another name, compressed again
    nib.save(nib.Nifti1Image(data, a_scan.affine), images / "twin.nii")
    (shapes / "labels" / "sub-003.nii.gz").rename(images / "sub-x.nii.gz")
    write_scan(images / "sub-metres.nii.gz", data[::2], np.diag([0.001, 0.001, 0.001, 1]))
    write_scan(images / "sub-constant.nii.gz", np.full((20, 20, 20), 7, np.int16))
    label = nib.load(shapes / "labels" / "sub-005.nii.gz")
    moved = nib.Nifti1Image(np.asarray(label.dataobj), label.affine + np.eye(4))
    nib.save(moved, shapes / "labels" / "sub-005.nii.gz")
    found = findings(shapes, tmp_path / "out")
    expected = {
        ("duplicates", "error"): {"sub-001", "twin"},
        ("unusable", "error"): {"sub-constant", "sub-metres", "sub-x"},
        ("labels", "error"): {"sub-005"},
    }
    for (check, severity), scans in expected.items():
        named = {scan for row in about(found, check, severity) for scan in row["scans"].split()}
        assert named == scans, check


def test_labels_without_a_scan_are_a_warning_with_the_remedy(shapes, tmp_path):
    shutil.copy(shapes / "labels" / "sub-001.nii.gz", shapes / "elsewhere_0077_seg.nii.gz")
    (found,) = about(findings(shapes, tmp_path / "lint"), "layout", "warning")
    assert "elsewhere_0077_seg" in found["finding"]
    assert "pair them in a table with the columns image and label" in found["finding"]


def test_headers_and_names_that_reveal_people_are_named_but_not_quoted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        scan = nib.Nifti1Image(rng.normal(9, 1, (12, 12, 12)).astype(np.float32), np.eye(4))
        scan.header["descrip"] = b"DOE^JANE 1970-01-02" if number == 0 else b"FSL5.0 TE=2.1"
        scan.header["db_name"] = b"DOE JANE" if number == 0 else b""
        name = "meier_20210317" if number == 1 else f"scan_{number}"
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(scan, tmp_path / "scans" / f"{name}.nii.gz")
    found = about(findings(tmp_path / "scans", tmp_path / "out"), "identity", "warning")
    assert {row["scans"] for row in found} == {"scan_0", "meier_20210317"}
    (header,) = [row for row in found if row["scans"] == "scan_0"]
    assert "db_name, descrip" in header["finding"]
    printed = capsys.readouterr()
    assert "JANE" not in printed.out + printed.err


def test_the_sheet_shows_every_scan_with_its_label_outlined(shapes, tmp_path):
    selfvox.lint(shapes, out=tmp_path / "out", workers=1)
    sheet = np.asarray(Pillow.open(tmp_path / "out" / "sheet_1.png")).astype(int)
    # three slices of six scans; outlines are the only colours
    grey = (sheet.max(2) - sheet.min(2)) < 10
    assert 0.002 < 1 - grey.mean() < 0.1
    shutil.rmtree(shapes / "labels")
    selfvox.lint(shapes, out=tmp_path / "out", workers=1)
    sheet = np.asarray(Pillow.open(tmp_path / "out" / "sheet_1.png")).astype(int)
    assert (sheet.max(2) == sheet.min(2)).all()


def test_one_of_another_kind_is_unlike_the_rest(shapes, a_scan, tmp_path):
    data = np.asarray(a_scan.dataobj).astype(np.float32)
    write_scan(shapes / "images" / "sub-squared.nii.gz", data**2, a_scan.affine)
    (row,) = about(findings(shapes, tmp_path / "out"), "unlike", "warning")
    assert row["scans"] == "sub-squared"


def test_colour_pictures_are_looked_at_too(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for number in range(5):
        picture = rng.integers(30, 220, (40, 50, 3)).astype(np.uint8)
        Pillow.fromarray(picture).save(tmp_path / "scans" / f"eye_{number}.png")
    found = selfvox.lint(tmp_path / "scans", out=tmp_path / "out", workers=1)
    assert {finding["severity"] for finding in found} == {"note"}
    assert (tmp_path / "out" / "sheet_1.png").exists()


def test_a_store_and_a_folder_among_the_scans_are_refused(shapes, shapes_store):
    with pytest.raises(UsageError, match="is a store; name the folder of the scans"):
        selfvox.lint(shapes_store)
    with pytest.raises(UsageError, match="inside the folder of the scans"):
        selfvox.lint(shapes / "images", out=shapes / "images" / "lint")


@pytest.mark.parametrize("scans", [3, 4, 6])
def test_an_empty_validation_is_no_warning(scans: int, tmp_path: Path) -> None:
    """Fewer than five subjects all train; with six one of them validates."""
    phantom.write(tmp_path / "scans", "shapes", count=scans)
    found = selfvox.lint(tmp_path / "scans", workers=1)
    assert [row["text"] for row in found if row["severity"] == "warning"] == []


def test_people_with_numbered_scans_are_asked_about_once(tmp_path):
    for number in range(6):
        name = f"p{number // 2}_echo{number % 2}.nii.gz"
        write_scan(tmp_path / "scans" / name, blob((20, 17, 12), number))
    findings = selfvox.lint(tmp_path / "scans", workers=1)
    of_people = [row["text"] for row in findings if row["check"] == "people"]
    (question,) = [text for text in of_people if "p0_echo0" in text]
    assert "is each beginning one person?" in question
