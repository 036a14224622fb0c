"""The page of embeddings: maps by property, scans that are alike, and no file of a person."""

import csv
import json

import numpy as np
import pytest

import selfvox
from selfvox.evaluation.embeddings import distances, plane

from .conftest import Elements

SITES = ["north", "south", "", "north", "south", "north"]
AGES = [str(30 + number) for number in range(24)]


def write_embeddings(folder, properties, subjects, seed=0):
    """What `embed` writes, of random vectors."""
    count = len(subjects)
    vectors = np.random.default_rng(seed).normal(size=(count, 5))
    ids = [f"scan_{number:02}" for number in range(count)]
    folder.mkdir(parents=True)
    np.savez(folder / "embeddings.npz", id=np.array(ids), vector=vectors)
    apart = distances(vectors) + np.diag([np.inf] * count)
    points, _ = plane(vectors)
    with (folder / "embeddings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["id", "file", "subject", "x", "y", "nearest", "distance", *properties]
        writer.writerow(columns)
        for number, row in enumerate(zip(*properties.values(), strict=True)):
            nearest = apart[number].argmin()
            place = [ids[nearest], apart[number, nearest]]
            file_ = f"CANARY/{ids[number]}.nii.gz"
            writer.writerow([ids[number], file_, subjects[number], *points[number], *place, *row])
    return ids, vectors


def page_of(folder, tmp_path):
    index = selfvox.report(folder, out=tmp_path / "report")
    page = Elements(index.read_text(encoding="utf-8"))
    return index, page, json.loads(page.text_of("script", id="points")[0])


@pytest.fixture
def embedded(tmp_path):
    folder = tmp_path / "embeddings"
    return folder, *write_embeddings(folder, {"site": SITES}, ["a", "a", "b", "b", "c", "d"])


def test_each_scan_is_a_dot_of_its_site_and_of_its_subject(embedded, tmp_path):
    folder, ids, _ = embedded
    _, page, points = page_of(folder, tmp_path)
    assert page.text_of("figcaption") == ["Map of the scans by site", "Map of the scans by subject"]
    dots = {name: [text.partition(",")[0] for text in texts] for name, texts in points.items()}
    assert dots["map-0-0"] == [id for id, site in zip(ids, SITES, strict=True) if site == "north"]
    assert dots["map-0-1"] == [id for id, site in zip(ids, SITES, strict=True) if site == "south"]
    assert dots["map-0-2"] == [ids[2]]
    assert points["map-0-2"][0].startswith("scan_02, site not known; nearest: ")
    assert dots["map-1-0"] == ids[:2]
    uses = [element for tag, element in page.elements if tag == "use"]
    assert len(uses) >= 2 * len(ids)


def test_the_loneliest_scan_comes_first_and_no_file_is_named(embedded, tmp_path):
    folder, ids, vectors = embedded
    index, page, _ = page_of(folder, tmp_path)
    apart = distances(vectors) + np.diag([np.inf] * len(ids))
    order = np.argsort(-apart.min(1), kind="stable")
    cells = page.text_of("td")
    assert [cell for cell in cells if cell in ids][::2] == [ids[number] for number in order]
    farthest = apart.min(1).max()
    assert (
        f"{ids[order[0]]} is the farthest from any other scan, at a distance of {farthest:.2f}"
        in (" ".join(page.text_of("li")))
    )
    same = sum(apart[number].argmin() == 1 - number for number in (0, 1))
    same += sum(apart[number].argmin() == 5 - number for number in (2, 3))
    assert f"Of 4 scans of subjects with several, {same} have one of the same" in " ".join(
        page.text_of("li")
    )
    for file in index.parent.rglob("*"):
        assert not file.is_file() or b"CANARY" not in file.read_bytes()


def test_a_measured_property_has_four_ranges_of_as_many_scans(tmp_path):
    ages = list(np.random.default_rng(1).permutation(AGES))
    write_embeddings(tmp_path / "embeddings", {"age": ages}, [f"s{place}" for place in range(24)])
    _, page, points = page_of(tmp_path / "embeddings", tmp_path)
    assert [len(texts) for texts in points.values()] == [6, 6, 6, 6]
    ranges = [
        [int(text.split("age ")[1].split(";")[0]) for text in texts] for texts in points.values()
    ]
    assert [(min(part), max(part)) for part in ranges] == [(30, 35), (36, 41), (42, 47), (48, 53)]
    assert {"30 to 35", "48 to 53"} <= set(page.text_of("text"))


def test_probes_and_neighbours_of_a_query_are_shown(embedded, tmp_path):
    folder, *_ = embedded
    header = "property,groups by,score of,scans,group,score,chance,largest gap\n"
    (folder / "probes.csv").write_text(
        header
        + "site,site,balanced accuracy,5,,0.75,0.5,0.2\n"
        + "site,site,balanced accuracy,5,north,0.8,,\n"
        + "site,sex,balanced accuracy,5,,0.75,0.5,0.31\n"
    )
    (folder / "neighbours.csv").write_text("rank,id,subject,distance\n1,scan_04,c,0.5\n")
    (folder / "neighbours").mkdir()
    (folder / "neighbours" / "sheet_1.png").write_bytes(b"a picture")
    index, page, _ = page_of(folder, tmp_path)
    assert (
        "A linear probe reads site of 5 scans with a balanced accuracy of 0.75; a guess has 0.50."
    ) in page.text_of("li")
    gap = "The balanced accuracy for site differs by 0.31 between groups of sex."
    assert [text for text in page.text_of("li") if "for site" in text or "reads site" in text] == [
        "A linear probe reads site of 5 scans with a balanced accuracy of 0.75; a guess has 0.50.",
        gap,
    ]
    (picture,) = page.of("img")
    assert (index.parent / picture["src"]).read_bytes() == b"a picture"
    assert "Most like the query" in page.text_of("h2")
