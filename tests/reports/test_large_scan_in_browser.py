"""A scan of the size of BraTS in a browser: it is seen, and what is drawn is on its grid."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.data import phantom
from selfvox.data.formats.image import read_grid, write_label

from ..conftest import affine, write_scan
from .browser import browser, colours

BRATS = (240, 240, 155)


@pytest.fixture(scope="module")
def visit():
    with browser() as open_page:
        yield open_page


def test_a_scan_of_the_size_of_brats_is_seen_and_corrected_on_its_grid(visit, predicted, tmp_path):
    # without maps and true labels, which are of a small scan, and without other scans
    others = shutil.ignore_patterns("maps", "labels", "scan_1*", "scan_2*")
    for name in ("predictions", "scans"):
        shutil.copytree(predicted / name, tmp_path / name, ignore=others)
    drawn = phantom.draw_shapes(np.random.default_rng(0), BRATS)
    grid = affine(spacing=(1.0, 1.0, 1.0), turn=0.1, axes=(0, 1, 2), signs=(-1, -1, 1))
    voxels = np.rint(drawn.image[0]).astype(np.int16)
    scan = write_scan(tmp_path / "scans" / "images" / "scan_0.nii.gz", voxels, grid)
    path = tmp_path / "predictions" / "scan_0.nii.gz"
    write_label(path, drawn.label, read_grid(scan))
    index = selfvox.report(
        tmp_path / "predictions", out=tmp_path / "report", scans=tmp_path / "scans"
    )
    look = visit(width=640, height=480)
    # decoding takes 17 seconds of a processor, which others may use too
    look.page.set_default_timeout(600_000)
    look.go(index)
    review = json.loads(look.page.locator("#review").text_content())
    (case,) = review["cases"]
    look.wait_for_case(case["key"])
    grey, colour = colours(look, "#canvas-box")
    assert grey > 5000
    assert colour > 100

    look.page.keyboard.press("d")
    look.page.wait_for_selector('html[data-drawing="true"]', state="attached")
    look.page.evaluate("selfvox.viewer.niivue.drawPt(120, 100, 77, 2)")
    with look.page.expect_download() as download:
        look.page.locator("#export-label").click()
    download.value.save_as(tmp_path / "drawn.nii.gz")
    # the header, with shape and affine, is that of the prediction, byte by byte
    exported = gzip.decompress((tmp_path / "drawn.nii.gz").read_bytes())
    assert exported[:352] == gzip.decompress(path.read_bytes())[:352]
    changed = np.asarray(nib.load(tmp_path / "drawn.nii.gz").dataobj) != drawn.label
    # x and y run to the left and to the back, a drawing to the right and to the front
    assert np.argwhere(changed).tolist() == [[239 - 120, 239 - 100, 77]]
    look.check_that_nothing_left_the_machine()
