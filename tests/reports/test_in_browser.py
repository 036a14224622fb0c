"""A person's way through the page of predictions, in a browser: look, mark, correct, export."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.prediction.review_marks import read_marks

from ..conftest import make_run, write_scan
from .browser import browser, colours, texts

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "hippocampus"


@pytest.fixture(scope="module")
def visit():
    with browser() as open_page:
        yield open_page


def test_a_person_looks_marks_corrects_and_exports(visit, predicted, page, tmp_path):
    look = visit()
    look.go(page / "index.html")
    review = json.loads(look.page.locator("#review").text_content())
    first, second, _ = review["cases"]
    look.wait_for_case(first["key"])

    # at the place that pictures show
    voxel = look.page.evaluate(
        "(() => { const view = selfvox.viewer.niivue;"
        " return [...view.frac2mm(view.scene.crosshairPos)].slice(0, 3); })()"
    )
    np.testing.assert_allclose(voxel, first["focus"], atol=0.5)

    # the scan in grey with its outlines in colour
    grey, colour = colours(look, "#canvas-box")
    assert grey > 500
    assert colour > 100
    look.page.keyboard.press("l")
    look.page.wait_for_timeout(300)
    _, without_label = colours(look, "#canvas-box")
    assert without_label < colour
    look.page.keyboard.press("l")

    # walking and marking by keys
    look.page.keyboard.press("f")
    look.page.keyboard.press("j")
    look.wait_for_case(second["key"])
    assert texts(look, "#case-heading") == [second["id"]]
    look.page.keyboard.press("p")
    look.page.keyboard.press("p")  # taken back
    look.page.keyboard.press("a")
    look.page.keyboard.press("n")
    look.page.keyboard.type('=1+1, "odd" pj')
    look.page.keyboard.press("Escape")
    assert texts(look, "#marks-count") == ["2 of 3 marked"]

    # marks survive a reload, and are exported as a table
    look.page.reload(wait_until="commit")
    look.wait_for_case(first["key"])
    assert texts(look, "td.mark") == ["fail", "artefact ✎", ""]
    with look.page.expect_download() as download:
        look.page.locator("#export-marks").click()
    assert download.value.suggested_filename == "review_marks.csv"
    download.value.save_as(tmp_path / "review_marks.csv")
    marks = read_marks(tmp_path / "review_marks.csv")
    assert {case: (mark.mark, mark.note) for case, mark in marks.items()} == {
        first["id"]: ("fail", ""),
        second["id"]: ("artefact", '=1+1, "odd" pj'),
    }
    assert marks[first["id"]].label_sha256 == first["label_sha256"]

    # a map with a threshold
    look.page.keyboard.press("m")
    assert "0." in texts(look, "#map-text")[0]
    look.page.locator("#map-threshold").fill("0.5")
    look.page.locator("#planes").select_option("coronal")

    # the truth in a second view, which moves together with the first
    look.page.locator("#linked").check()
    look.page.wait_for_selector("#canvas-2")
    grey, colour = colours(look, "#canvas-box")
    assert grey > 500
    assert colour > 100
    look.page.locator("#linked").uncheck()

    # what is drawn comes back on the grid of the scan
    look.page.keyboard.press("d")
    look.page.wait_for_selector('html[data-drawing="true"]', state="attached")
    drawn = ([3, 4, 5], [10, 2, 7])  # right, anterior, superior
    for point in drawn:
        look.page.evaluate("([x, y, z]) => selfvox.viewer.niivue.drawPt(x, y, z, 2)", point)
    with look.page.expect_download() as download:
        look.page.locator("#export-label").click()
    assert download.value.suggested_filename == f"{first['id']}.nii.gz"
    download.value.save_as(tmp_path / "drawn.nii.gz")
    before = nib.load(predicted / "predictions" / f"{first['id']}.nii.gz")
    after = nib.load(tmp_path / "drawn.nii.gz")
    written = gzip.decompress((predicted / "predictions" / f"{first['id']}.nii.gz").read_bytes())
    exported = gzip.decompress((tmp_path / "drawn.nii.gz").read_bytes())
    # `predict` adds the names of the classes: where the voxels begin, and that something is added
    assert exported[:108] == written[:108]
    assert exported[112:348] == written[112:348]
    expected = nib.as_closest_canonical(before).get_fdata().copy()
    for point in drawn:
        expected[tuple(point)] = 2
    assert not np.array_equal(expected, nib.as_closest_canonical(before).get_fdata())
    np.testing.assert_array_equal(nib.as_closest_canonical(after).get_fdata(), expected)
    assert "corrected" in texts(look, "tr.chosen td.mark")[0]
    look.check_that_nothing_left_the_machine()


def test_the_page_fits_a_telephone_and_a_single_file_opens(visit, predicted, tmp_path):
    index = selfvox.report(predicted / "predictions", out=tmp_path / "report", single_file=True)
    look = visit(width=390, height=844, scheme="dark")
    look.go(index)
    look.wait_for_case("page-1/0001")
    size = look.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert size[0] <= size[1]
    background = look.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 24, 31)"
    grey, colour = colours(look, "#canvas-box")
    assert grey > 500
    assert colour > 100
    look.check_that_nothing_left_the_machine()


def test_charts_show_their_values_and_tables_sort(visit, tmp_path):
    index = selfvox.report(STUDY, out=tmp_path / "report")
    look = visit()
    look.go(index)
    points = json.loads(look.page.locator("#points").text_content())
    curve, texts_of_points = next(iter(points.items()))
    mark = look.page.locator(f"#{curve} use").nth(1)
    box = mark.bounding_box()
    look.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert texts(look, ".tip") == [texts_of_points[1]]

    means = look.page.locator("section:has(h2:text('Summary')) tbody tr td:nth-child(8)")
    look.page.get_by_role("button", name="mean", exact=True).first.click()
    values = [float(text) for text in means.all_inner_texts()]
    assert values == sorted(values)
    look.page.get_by_role("button", name="mean", exact=True).first.click()
    values = [float(text) for text in means.all_inner_texts()]
    assert values == sorted(values, reverse=True)
    look.check_that_nothing_left_the_machine()


def draw(look, points, number=2):
    look.page.locator("#draw").check()
    look.page.wait_for_selector('html[data-drawing="true"]', state="attached")
    for point in points:
        look.page.evaluate(
            "([x, y, z, number]) => selfvox.viewer.niivue.drawPt(x, y, z, number)",
            [*point, number],
        )


def label_of(file):
    """In RAS orientation, as it is drawn on."""
    return nib.as_closest_canonical(nib.load(file)).get_fdata().copy()


def exported_label(look, file):
    with look.page.expect_download() as download:
        look.page.locator("#export-label").click()
    download.value.save_as(file)
    return label_of(file)


def test_a_drawing_is_kept_while_other_cases_are_shown_until_it_is_exported(
    visit, predicted, page, tmp_path
):
    look = visit()
    look.go(page / "index.html")
    review = json.loads(look.page.locator("#review").text_content())
    first, second, _ = review["cases"]
    look.wait_for_case(first["key"])
    draw(look, [(3, 4, 5)])
    look.page.locator("#canvas").focus()
    look.page.keyboard.press("j")
    look.wait_for_case(second["key"])
    assert texts(look, "td.mark") == ["drawn", "", ""]
    assert not look.page.evaluate("selfvox.viewer.isDrawn()")
    draw(look, [(9, 8, 7)])
    # faster than scans are read
    look.page.keyboard.press("k")
    look.page.keyboard.press("j")
    look.page.keyboard.press("k")
    look.wait_for_case(first["key"])
    assert texts(look, "td.mark") == ["", "drawn", ""]
    assert not look.page.locator("#draw").is_checked()
    draw(look, [(10, 2, 7)])

    # the browser asks before the drawings are lost
    with look.page.expect_event("dialog") as asked:
        look.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.dismiss()

    # the next case is chosen while the file is written
    with look.page.expect_download() as download:
        look.page.evaluate(
            "document.getElementById('export-label').click();"
            "document.getElementById('next').click()"
        )
    look.wait_for_case(second["key"])
    assert download.value.suggested_filename == f"{first['id']}.nii.gz"
    download.value.save_as(tmp_path / "first.nii.gz")
    look.page.wait_for_selector("td.mark:text-is('corrected')")
    assert texts(look, "td.mark") == ["corrected", "", ""]
    exported_label(look, tmp_path / "second.nii.gz")
    drawn = {"first": [(3, 4, 5), (10, 2, 7)], "second": [(9, 8, 7)]}
    for name, case in (("first", first), ("second", second)):
        expected = label_of(predicted / "predictions" / f"{case['id']}.nii.gz")
        for point in drawn[name]:
            expected[point] = 2
        np.testing.assert_array_equal(label_of(tmp_path / f"{name}.nii.gz"), expected)
    assert texts(look, "td.mark") == ["corrected", "corrected", ""]

    # nothing is lost any more
    with look.page.expect_event("close"):
        look.page.close(run_before_unload=True)
    assert look.errors == []


def test_a_drawing_goes_on_in_another_channel(visit, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("t1", "t2"):
        scan = rng.normal(size=(20, 17, 12)).astype(np.float32)
        write_scan(tmp_path / "scans" / "images" / f"scan_{name}.nii.gz", scan)
    (tmp_path / "scans.csv").write_text(
        "image_t1,image_t2\nscans/images/scan_t1.nii.gz,scans/images/scan_t2.nii.gz\n"
    )
    run = make_run(tmp_path / "run", channel_names=("t1", "t2"))
    out = tmp_path / "predictions"
    selfvox.predict(run, tmp_path / "scans.csv", out=out, device="cpu")
    look = visit()
    look.go(selfvox.report(out, out=tmp_path / "report"))
    look.wait_for_case("page-1/0001")
    (file,) = out.glob("*.nii.gz")
    predicted = label_of(file)
    places = [tuple(place) for place in np.argwhere(predicted != 1)[[0, -1]]]
    draw(look, [list(map(int, places[0]))], 1)
    look.page.locator("#channel").select_option("1")
    look.page.wait_for_selector('html[data-state^="loading"]', state="detached")
    look.page.wait_for_timeout(1000)
    assert look.page.locator("#draw").is_checked()
    draw(look, [list(map(int, places[1]))], 1)
    # a stroke of the mouse
    box = look.page.locator("#canvas-box").bounding_box()
    look.page.mouse.move(box["x"] + 150, box["y"] + 150)
    look.page.mouse.down()
    look.page.mouse.move(box["x"] + 180, box["y"] + 150, steps=4)
    look.page.mouse.up()
    label = exported_label(look, tmp_path / "drawn.nii.gz")
    assert [label[place] for place in places] == [1, 1]
    assert look.errors == []


def test_page_keys_walk_through_the_slices_of_the_plane(visit, page):
    look = visit()
    look.go(page / "index.html")
    look.wait_for_case("page-1/0001")
    look.page.locator("#canvas").focus()

    def voxel():
        place = look.page.evaluate(
            "[...selfvox.viewer.niivue.frac2vox(selfvox.viewer.niivue.scene.crosshairPos)]"
        )
        return np.array(place)

    # right, anterior, superior
    for planes, axis in (("1", 2), ("2", 2), ("3", 1), ("4", 0)):
        look.page.keyboard.press(planes)
        before = voxel()
        look.page.keyboard.press("PageUp")
        look.page.keyboard.press("PageUp")
        expected = before.copy()
        expected[axis] += 2
        np.testing.assert_array_equal(voxel(), expected)
        look.page.keyboard.press("PageDown")
        expected[axis] -= 1
        np.testing.assert_array_equal(voxel(), expected)
