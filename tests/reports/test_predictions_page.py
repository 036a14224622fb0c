"""The page of predictions shows what the folder says, and nothing of who it is of."""

import base64
import csv
import gzip
import hashlib
import json
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import selfvox
from selfvox.commands import report as command
from selfvox.data.formats.image import Image
from selfvox.errors import UsageError
from selfvox.plotting import informative_level
from selfvox.reports import page as pages
from selfvox.reports.viewer_case import focus_mm

from ..conftest import blob, make_run, write_scan
from .conftest import NASTY, SHAPE, TURNED, Elements, volume

NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


def read(path):
    return Elements(path.read_text(encoding="utf-8"))


def review_of(path):
    (text,) = read(path).text_of("script", id="review")
    return json.loads(text)


def test_cases_are_listed_in_the_order_of_the_review(predicted, page):
    with (predicted / "predictions" / "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    index = read(page / "index.html")
    assert index.text_of("button", class_="case") == [row["case"] for row in rows]
    meters = [float(meter["value"]) for meter in index.of("meter")]
    assert meters == [float(row["trust"]) for row in rows]
    assert meters == sorted(meters)


def test_the_viewer_gets_the_label_byte_by_byte_and_the_rest_to_a_255th(predicted, page):
    predictions = predicted / "predictions"
    for case in review_of(page / "index.html")["cases"]:
        name = case["id"]
        shown_label = base64_content(page, case["label"])
        written = gzip.decompress((predictions / f"{name}.nii.gz").read_bytes())
        # `predict` adds the names of the classes: where the voxels begin, and that they do later
        begin = int(struct.unpack_from("<f", written, 108)[0])
        assert shown_label[:108] == written[:108]
        assert shown_label[112:348] == written[112:348]
        assert shown_label[352:] == written[begin:]
        assert case["editable"]
        digest = hashlib.sha256((predictions / f"{name}.nii.gz").read_bytes()).hexdigest()
        assert case["label_sha256"] == digest
        scan = nib.load(predicted / "scans" / "images" / f"{name}.nii.gz")
        shown = volume(page, case["channels"][0]["data"])
        np.testing.assert_allclose(shown.affine, TURNED, atol=1e-5)
        low, high = np.percentile(scan.get_fdata(), (0.5, 99.5))
        clipped = np.clip(scan.get_fdata(), low, high)
        np.testing.assert_allclose(shown.get_fdata(), clipped, atol=(high - low) / 255)
        entropy = nib.load(predictions / "maps" / f"{name}_entropy.nii.gz").get_fdata()
        (entry,) = [entry for entry in case["maps"] if entry["name"] == "entropy"]
        np.testing.assert_allclose(
            volume(page, entry["data"]).get_fdata(), entropy, atol=entropy.max() / 255
        )
        high_map = nib.load(predictions / "maps" / f"{name}_percentile-95.nii.gz").get_fdata()
        (entry,) = [entry for entry in case["maps"] if entry["name"] == "organ: 95th percentile"]
        shown_map = volume(page, entry["data"]).get_fdata()
        np.testing.assert_allclose(shown_map, high_map[..., 1], atol=1 / 255)


def base64_content(page, name):
    text = (page / "data" / f"{name}.js").read_text().split('"')[3]
    return gzip.decompress(base64.b64decode(text))


def test_dice_is_that_of_the_truth_next_to_the_scans(predicted, page):
    index = read(page / "index.html")
    rows = {
        name: [row["dice"] for row in selfvox_rows(predicted) if row["name"] == name]
        for name in ("organ", NASTY)
    }
    shown = " ".join(index.text_of("li"))
    for values in rows.values():
        mean, spread = np.mean(values), np.std(values, ddof=1)
        assert f"Dice {mean:.3f} ± {spread:.3f} (3 cases)" in shown
    # the column sorts by the mean of the classes
    means = {row["case"]: [] for row in selfvox_rows(predicted)}
    for row in selfvox_rows(predicted):
        if row["name"] in rows:
            means[row["case"]].append(row["dice"])
    cells = [float(cell["data-value"]) for cell in index.of("td") if cell.get("class") == "dice"]
    cases = index.text_of("button", class_="case")
    np.testing.assert_allclose(cells, [np.mean(means[case]) for case in cases])


def test_the_viewer_opens_in_the_slice_that_pictures_show(predicted, page):
    for case in review_of(page / "index.html")["cases"]:
        written = nib.load(predicted / "predictions" / f"{case['id']}.nii.gz")
        canonical = nib.as_closest_canonical(written)
        label = np.asarray(canonical.dataobj)
        place = np.linalg.inv(canonical.affine) @ [*case["focus"], 1]
        voxel = tuple(np.rint(place[:3]).astype(int))
        np.testing.assert_allclose(place[:3], voxel, atol=1e-3)
        assert voxel[2] == informative_level(label)
        assert label[voxel] == label[:, :, voxel[2]].max()


def test_the_viewer_opens_in_another_class_where_the_slice_lacks_the_highest():
    label = np.zeros((6, 6, 8), np.uint8)
    label[2, 3, 1] = 1
    label[4, 1, 1] = 2
    label[0, 0, 4:6] = 3
    image = Image(label[None], np.diag([1.0, 2.0, 3.0, 1.0]), "scan")
    assert informative_level(label) == 1
    assert focus_mm(label, image) == [4.0, 2.0, 3.0]
    assert focus_mm(np.zeros_like(label), image) is None


def test_trust_is_drawn_against_the_mean_dice_of_each_case(predicted, page):
    index = read(page / "index.html")
    with (predicted / "predictions" / "review.csv").open() as file:
        trust = {row["case"]: float(row["trust"]) for row in csv.DictReader(file)}
    dice = {case: [] for case in trust}
    for row in selfvox_rows(predicted):
        dice[row["case"]].append(row["dice"])
    points = json.loads(index.text_of("script", id="points")[0])
    assert points["trust-0"] == [
        f"{case}: {np.mean(dice[case]):.4g} at trust {value:g}" for case, value in trust.items()
    ]


def selfvox_rows(predicted):
    return selfvox.evaluate(predicted / "predictions", predicted / "scans" / "labels")


@pytest.mark.fault("X6", "markup in names on the pages of a report", "text, under a strict policy")
def test_nothing_of_a_page_comes_from_elsewhere_and_text_stays_text(page):
    index = read(page / "index.html")
    addresses = [
        element[name]
        for _, element in index.elements
        for name in ("src", "href", "srcset", "action", "poster")
        if name in element
    ]
    for address in addresses:
        assert address.startswith(("#", "data:,", "assets/", "pictures/page-1/")), address
        path = page / address
        assert address[0] == "#" or address == "data:," or path.is_file()
    assert not [name for _, element in index.elements for name in element if name[:2] == "on"]
    (policy,) = [
        meta["content"]
        for meta in index.of("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "http" not in policy
    assert NASTY in " ".join(index.text_of("th")) + " ".join(index.text_of("li"))
    assert {image["src"] for image in index.of("img") if "src" in image} != {"x"}


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    index = read(page / "index.html")
    for image in index.of("img"):
        assert image["alt"] or "hidden" in image
    labels = index.elements
    for place, (tag, element) in enumerate(labels):
        if tag in ("input", "select"):
            # inside its label
            assert "label" in {name for name, _ in labels[max(0, place - 2) : place]}, element
    charts = [element for element in index.of("div") if element.get("class") == "chart"]
    for picture in charts + index.of("canvas"):
        assert picture["aria-label"]
    unnamed = [picture for picture in index.of("svg") if "aria-label" not in picture]
    # the chart around it has a name
    assert len(unnamed) == len(charts)
    (html,) = index.of("html")
    assert html["lang"] == "en"


@pytest.mark.fault("X11 X12", "paths and names in a report", "in no byte")
def test_no_byte_of_a_report_says_where_scans_are_or_whose(predicted, page):
    header = b"DOE^JANE"
    scan = gzip.decompress((predicted / "scans" / "images" / "scan_0.nii.gz").read_bytes())
    assert header in scan
    for file in page.rglob("*"):
        if not file.is_file():
            continue
        contents = [file.read_bytes()]
        if file.is_relative_to(page / "data"):
            contents.append(base64_content(page, str(file.relative_to(page / "data"))[:-3]))
        for content in contents:
            assert header not in content, file
            assert b"CANARY" not in content, file
            assert str(predicted).encode() not in content, file


def test_a_single_file_has_everything_and_fits_the_budget(predicted, tmp_path):
    folder = tmp_path / "report"
    index = selfvox.report(predicted / "predictions", out=folder, single_file=True)
    assert {file.name for file in folder.iterdir()} == {"index.html", "report.json"}
    assert index.stat().st_size < 10e6
    elements = read(index)
    for _, element in elements.elements:
        for name in ("src", "href"):
            assert element.get(name, "#")[:5] in ("#", "#main", "data:"), element
    # no byte says where scans are, or what is in their headers, packed or not
    packed = [text for tag, element, text in elements.texts if "data-name" in element]
    contents = [gzip.decompress(base64.b64decode(text)) for text in packed]
    assert len(contents) >= 9  # scan, label and truth of three cases
    for content in (index.read_bytes(), *contents):
        assert b"CANARY" not in content
        assert b"DOE^JANE" not in content
    case = review_of(index)["cases"][0]
    (text,) = elements.text_of("script", **{"data-name": case["label"]})
    label = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    written = nib.load(predicted / "predictions" / f"{case['id']}.nii.gz")
    # half of the resolution: every other voxel, and the same place in space
    np.testing.assert_array_equal(label.get_fdata(), written.get_fdata()[::2, ::2, ::2])
    np.testing.assert_allclose(label.affine[:, :3], 2 * TURNED[:, :3], atol=1e-5)
    np.testing.assert_allclose(label.affine[:, 3], TURNED[:, 3], atol=1e-5)
    assert not case["editable"]


def test_a_single_file_above_the_budget_is_made_coarser(predicted, tmp_path, monkeypatch, capsys):
    sizes = []
    size = command._size
    monkeypatch.setattr(command, "_size", lambda folder: sizes.append(size(folder)) or sizes[-1])
    monkeypatch.setattr(command, "BUDGET_MB", 0.1)
    selfvox.report(predicted / "predictions", out=tmp_path / "report", single_file=True)
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert "browsers are slow to open more than 0.1 MB" in capsys.readouterr().err


def test_a_report_replaces_a_report_and_nothing_else(predicted, page, tmp_path):
    out = tmp_path / "report"
    shutil.copytree(page, out)
    (out / "index.html").write_text("an earlier one")
    selfvox.report(predicted / "predictions", out=out)
    assert "an earlier one" not in (out / "index.html").read_text()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no report; name another"):
        selfvox.report(predicted / "predictions", out=foreign)
    with pytest.raises(UsageError, match="contains what the report is about"):
        selfvox.report(predicted / "predictions", out=predicted)
    with pytest.raises(UsageError, match="is no run, no study, no predictions"):
        selfvox.report(predicted / "scans", out=tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"report", "foreign"}
    assert {path.name for path in foreign.iterdir()} == {"thesis.txt"}


def test_predictions_without_their_scans_are_still_listed(predicted, tmp_path, capsys):
    copy = tmp_path / "predictions"
    shutil.copytree(predicted / "predictions", copy)
    (copy / "settings.yaml").unlink()
    index = selfvox.report(copy, out=tmp_path / "report")
    assert "does not say which scans it is of" in capsys.readouterr().err
    elements = read(index)
    assert len(elements.text_of("button", class_="case")) == 3
    assert "the scan is not found" in " ".join(elements.text_of("td", class_="flags"))
    # named again, they are there
    selfvox.report(copy, out=tmp_path / "report", scans=predicted / "scans")
    (case, *_) = review_of(index)["cases"]
    assert case["channels"]
    assert case["truth"]


def test_a_label_that_was_corrected_by_hand_is_flagged(predicted, tmp_path):
    copy = tmp_path / "predictions"
    shutil.copytree(predicted / "predictions", copy)
    write_scan(copy / "scan_1.nii.gz", np.ones(SHAPE, np.uint8), TURNED)
    index = selfvox.report(copy, out=tmp_path / "report", scans=predicted / "scans")
    flags = read(index).text_of("td", class_="flags")
    assert [text for text in flags if "corrected by hand" in text]


@pytest.mark.parametrize("layout", ["folder", "decathlon", "nnU-Net's names"])
def test_each_channel_of_a_scan_is_shown_by_the_name_that_the_network_knows(layout, tmp_path):
    run = make_run(tmp_path / "run", channel_names=("t1", "flair"))
    channels = [blob(SHAPE, 0), blob(SHAPE, 9)]
    if layout == "nnU-Net's names":
        for number, channel in enumerate(channels):
            write_scan(tmp_path / f"scans/a_{number:04}.nii.gz", channel)
    else:
        write_scan(tmp_path / "scans/a.nii.gz", np.stack(channels, -1))
    if layout == "decathlon":
        content = {"modality": {"0": "t1", "1": "flair"}, "test": ["a.nii.gz"], "training": []}
        (tmp_path / "scans/dataset.json").write_text(json.dumps(content))
    selfvox.predict(run, tmp_path / "scans", out=tmp_path / "predictions", device="cpu")
    index = selfvox.report(tmp_path / "predictions", out=tmp_path / "report")
    (case,) = review_of(index)["cases"]
    assert [channel["name"] for channel in case["channels"]] == ["t1", "flair"]
    for shown, channel in zip(case["channels"], channels, strict=True):
        values = np.asarray(volume(index.parent, shown["data"]).dataobj).squeeze()
        assert np.corrcoef(values.ravel(), channel.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("named", ["scans", "scans/sub/a.nii.gz", "scans/list.txt", "scans/t.csv"])
def test_commands_for_other_viewers_name_files_that_exist(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scan(Path("scans/sub/a.nii.gz"), blob(SHAPE, 0))
    if named.endswith("t.csv"):
        Path(named).write_text("image\nsub/a.nii.gz\n")
    if named.endswith("list.txt"):
        Path(named).write_text("sub/a.nii.gz\n")
    selfvox.predict(make_run(Path("run")), Path(named), out=Path("predictions"), device="cpu")
    review = review_of(selfvox.report(Path("predictions"), out=Path("report")))
    (case,) = review["cases"]
    folders = review["folders"]
    # as `showCommands` of review.js joins them
    assert Path(f"{folders['scans']}/{case['scan_file']}").samefile("scans/sub/a.nii.gz")
    assert Path(f"{folders['predictions']}/{case['label_file']}").is_file()


def test_several_folders_make_one_report_with_a_list(predicted, tmp_path):
    copy = tmp_path / "others"
    shutil.copytree(predicted / "predictions", copy)
    index = selfvox.report([predicted / "predictions", copy], out=tmp_path / "report")
    links = [link["href"] for link in read(index).of("a")]
    assert links[1:] == ["page-1.html", "page-2.html"] * 2
    keys = [
        {case["key"] for case in review_of(index.parent / name)["cases"]}
        for name in ("page-1.html", "page-2.html")
    ]
    assert keys[0].isdisjoint(keys[1])


def test_the_viewer_is_the_pinned_release_with_its_licence():
    content = (pages._ASSETS / pages.VIEWER).read_bytes()
    assert hashlib.sha256(content).hexdigest() == NIIVUE_SHA256  # @niivue/niivue 0.69.0, npm
    licence = (pages._ASSETS / pages.LICENCE).read_text()
    assert licence.startswith("BSD 2-Clause License")
    assert b"</script" not in content
