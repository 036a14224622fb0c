"""Pages of runs, embeddings and pictures in a browser: all of it is seen."""

import numpy as np
import pytest
from PIL import Image as Pillow

import selfvox

from ..conftest import make_run
from .browser import browser, colours, texts
from .test_embedding_page import SITES, write_embeddings
from .test_run_pages import pretrain_lines, write_run


@pytest.fixture(scope="module")
def visit():
    with browser() as open_page:
        yield open_page


def fits(look):
    """Whether the page is no wider than its window."""
    size = look.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    return size[0] <= size[1]


def test_pages_of_runs_and_embeddings_fit_a_telephone_and_show_values(visit, tmp_path):
    pretraining = write_run(tmp_path / "pretraining", "pretrain", pretrain_lines())
    lines = [{"step": step, "loss": 1.0, "dice_mean": 0.5} for step in (50, 100)]
    segmentation = write_run(tmp_path / "segmentation", "finetune", lines)
    make_run(segmentation)
    table = "step,case,dice_organ\n1,scan_0,0.25\n1,scan_1,0.75\n"
    (segmentation / "network" / "validation.csv").write_text(table)
    subjects = ["a", "a", "b", "b", "c", "d"]
    ids, _ = write_embeddings(tmp_path / "embeddings", {"site": SITES}, subjects)
    folders = [pretraining, segmentation, tmp_path / "embeddings"]
    index = selfvox.report(folders, out=tmp_path / "report")
    look = visit(width=390, height=844)
    look.go(index)
    for title in ("Pre-training pretraining", "Fine-tuning segmentation", "Embeddings embeddings"):
        look.page.get_by_role("link", name=title).first.click()
        assert texts(look, "h1") == [title]
        assert fits(look)
    dot = look.page.locator("#map-0-1 use").first
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    look.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    (text,) = texts(look, ".tip")
    assert text.startswith(f"{ids[1]}, site south; nearest: ")
    # numbers sort as numbers, names as names
    look.page.get_by_role("button", name="distance", exact=True).click()
    apart = [float(text) for text in texts(look, "td:nth-child(4)")]
    assert apart == sorted(apart)
    look.check_that_nothing_left_the_machine()


def test_a_colour_picture_is_seen_in_colour_with_its_map(visit, tmp_path):
    rng = np.random.default_rng(0)
    disc = np.hypot(*(np.indices((40, 48)) / 40 - 0.5)) < 0.4
    (tmp_path / "images").mkdir()
    for number in range(2):
        noise = rng.integers(0, 20, (*disc.shape, 3))
        eye = np.where(disc[..., None], np.array([180, 80, 30]) + noise, noise // 4)
        Pillow.fromarray(eye.astype(np.uint8)).save(tmp_path / "images" / f"eye_{number}.png")
    run = make_run(tmp_path / "run", channel_names=("red", "green", "blue"), spatial_dims=2)
    out = tmp_path / "predictions"
    maps = ("entropy",)
    selfvox.predict(run, tmp_path / "images", out=out, passes=2, maps=maps, device="cpu")
    look = visit()
    look.go(selfvox.report(out, out=tmp_path / "report"))
    look.wait_for_case("page-1/0001")
    _, colour = colours(look, "#canvas-box")
    assert colour > 5000
    # what belongs to volumes is not offered
    assert not look.page.locator("#planes").is_visible()
    assert not look.page.locator("#radiological").is_visible()
    look.page.keyboard.press("3")
    look.page.wait_for_timeout(200)
    assert abs(colours(look, "#canvas-box")[1] - colour) < 0.05 * colour
    look.page.keyboard.press("m")
    assert " to " in texts(look, "#map-text")[0]
    look.page.keyboard.press("j")
    look.wait_for_case("page-1/0002")
    look.check_that_nothing_left_the_machine()


def test_pixels_drawn_into_a_picture_come_back_as_png_and_are_accepted(visit, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    picture = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)  # rows, columns
    Pillow.fromarray(picture).save(tmp_path / "images" / "eye.png")
    run = make_run(tmp_path / "run", channel_names=("red", "green", "blue"), spatial_dims=2)
    out = tmp_path / "predictions"
    selfvox.predict(run, tmp_path / "images", out=out, device="cpu")
    predicted = np.array(Pillow.open(out / "eye.png"))
    number = int(predicted.max())
    assert number > 0
    # the background where there is a class, and a class where there is none
    erased = tuple(np.argwhere(predicted == number)[0])
    drawn = tuple(np.argwhere(predicted == 0)[0]) if (predicted == 0).any() else erased
    look = visit()
    look.go(selfvox.report(out, out=tmp_path / "report"))
    look.wait_for_case("page-1/0001")
    look.page.keyboard.press("d")
    look.page.wait_for_selector('html[data-drawing="true"]', state="attached")
    # NiiVue counts rows from below
    for (row, column), value in ((drawn, number), (erased, 0)):
        place = [int(column), len(predicted) - 1 - int(row), 0, value]
        look.page.evaluate("([x, y, z, n]) => selfvox.viewer.niivue.drawPt(x, y, z, n)", place)
    # a stroke of the mouse with a brush of one pixel
    look.page.locator("#pen").select_option("0")
    look.page.locator("#pen-size").fill("1")
    box = look.page.locator("#canvas-box").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    look.page.mouse.move(*middle)
    look.page.mouse.down()
    look.page.mouse.move(middle[0] + 40, middle[1], steps=4)
    look.page.mouse.up()
    with look.page.expect_download() as download:
        look.page.locator("#export-label").click()
    assert download.value.suggested_filename == "eye.png"
    (tmp_path / "corrections").mkdir()
    file = tmp_path / "corrections" / "eye.png"
    download.value.save_as(file)
    exported = Pillow.open(file)
    assert (exported.format, exported.mode, exported.size) == ("PNG", "L", (48, 40))
    pixels = np.array(exported)
    assert (pixels[drawn], pixels[erased]) == (number, 0)
    changed = np.argwhere(pixels != predicted)
    stroke = [place for place in map(tuple, changed) if place not in {drawn, erased}]
    rows = {row for row, _ in stroke}
    assert stroke
    assert len(rows) == 1  # along a row
    assert abs(rows.pop() - 20) <= 1
    selfvox.correct(out, corrections=file.parent, out=tmp_path / "new")
    (label,) = (tmp_path / "new").rglob("eye*.png")
    np.testing.assert_array_equal(np.array(Pillow.open(label)), pixels)
    look.check_that_nothing_left_the_machine()
