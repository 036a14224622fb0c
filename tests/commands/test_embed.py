"""`embed`: the vectors are those of the encoder, and the scans that are alike are found."""

import csv

import numpy as np
import pytest
import torch

import selfvox
from selfvox.errors import DataError, UsageError
from selfvox.models.build import load_encoder
from selfvox.prediction.embed_scan import embed_crops
from selfvox.runs.device import make_fabric

from ..conftest import blob, make_run, write_scan


def read(path):
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def embedded(run, scans, tmp_path):
    def embed(**settings):
        selfvox.embed(run, scans, out=tmp_path / "out", device="cpu", precision="fp32", **settings)
        return tmp_path / "out"

    return embed


@pytest.mark.parametrize(("spatial_dims", "axis"), [(3, None), (2, 1)])
def test_crops_are_embedded_one_by_one(tmp_path, spatial_dims, axis):
    run = make_run(tmp_path / "run", spatial_dims=spatial_dims)
    encoder, _ = load_encoder(run)
    encoder.eval()
    image = torch.randn(1, 20, 17, 33, generator=torch.Generator().manual_seed(0))
    crop = (16,) * spatial_dims
    vectors, starts = embed_crops(encoder, make_fabric("cpu", 1, "fp32"), image, crop, axis)
    # of a volume 2 x 2 x 3 crops; of slices along the second axis 17 times 2 x 3
    assert len(vectors) == (12 if axis is None else 17 * 6)
    assert len({tuple(start) for start in starts}) == len(starts)
    for vector, start in zip(vectors, starts, strict=True):
        x, y, z = start
        if axis is None:
            part = image[:, x : x + 16, y : y + 16, z : z + 16]
        else:
            part = image[:, x : x + 16, y, z : z + 16]
        with torch.no_grad():
            expected = encoder.embed(part[None])[0].numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_small_scan_is_mirrored_as_in_python(run, tmp_path):
    path = write_scan(tmp_path / "scans" / "small.nii.gz", blob((15, 14, 12)), np.eye(4))
    selfvox.embed(run, path, out=tmp_path / "out", device="cpu", precision="fp32")
    vectors = np.load(tmp_path / "out/embeddings.npz")
    assert vectors["id"].tolist() == ["small"]
    loaded = selfvox.load_encoder(run, device="cpu", precision="fp32")
    # mirrored to a whole crop in one, to a whole stride in the other
    assert vectors["vector"].shape == (1, len(loaded.embed(path)))


def test_a_scan_has_the_maximum_of_its_crops(scans, embedded):
    write_scan(scans / "large.nii.gz", blob((60, 40, 50)))
    out = embedded(crops=True)
    arrays = np.load(out / "embeddings.npz")
    assert arrays["crop_start"].shape == (len(arrays["crop_id"]), 3)
    for scan, vector in zip(arrays["id"], arrays["vector"], strict=True):
        of_scan = arrays["crop_vector"][arrays["crop_id"] == scan]
        np.testing.assert_array_equal(vector, of_scan.max(0))
    assert (arrays["crop_id"] == "large").sum() > 8


def test_the_same_scan_again_is_the_nearest(run, scans, tmp_path, embedded):
    for number in range(3, 6):
        write_scan(scans / f"scan_{number}.nii.gz", blob((20, 17, 12), number))
    again = blob((20, 17, 12), 0) + np.int16(1)
    write_scan(scans / "again.nii.gz", np.where(again > 1, again, 0).astype(np.int16))
    out = embedded(query="scan_0.nii.gz")
    nearest = {row["id"]: row["nearest"] for row in read(out / "embeddings.csv")}
    assert nearest["scan_0"] == "again"
    neighbours = read(out / "neighbours.csv")
    assert [row["rank"] for row in neighbours] == ["1", "2", "3", "4", "5", "6"]
    assert neighbours[0]["id"] == "again"
    assert "scan_0" not in {row["id"] for row in neighbours}
    assert (out / "neighbours/sheet_1.png").exists()


def test_a_property_is_probed(scans, embedded, capsys):
    for number in range(3, 12):
        write_scan(scans / f"scan_{number}.nii.gz", blob((20, 17, 12), number))
    rows = [f"scan_{number},{'ab'[number % 2]},{20 + number}" for number in range(11)]
    (scans.parent / "people.csv").write_text("\n".join(["scan,site,age", *rows]))
    out = embedded(by=("site", "age"), table=scans.parent / "people.csv")
    table = read(out / "embeddings.csv")
    # one scan is not in the table
    assert {row["id"]: row["site"] for row in table}["scan_11"] == ""
    rows = read(out / "probes.csv")
    of_age = {row["group"]: row for row in rows if row["groups by"] == "site" != row["property"]}
    assert of_age.keys() == {"", "a", "b"}
    gap = abs(float(of_age["a"]["score"]) - float(of_age["b"]["score"]))
    assert float(of_age[""]["largest gap"]) == pytest.approx(gap, abs=1e-3)
    probes = [row for row in rows if not row["group"] and row["groups by"] == row["property"]]
    assert [(row["property"], row["scans"]) for row in probes] == [("site", "11"), ("age", "11")]
    assert [row["score of"] for row in probes] == ["balanced accuracy", "mean absolute error"]
    assert (out / "map.png").exists()


def test_what_does_not_fit_is_refused(run, scans, tmp_path, embedded):
    with pytest.raises(UsageError, match=r"query: no scan is called scan_9; did you mean 'scan_"):
        embedded(query="scan_9")
    with pytest.raises(UsageError, match=r"by: there is no .*participants.tsv; name a table"):
        embedded(by=("site",))
    (tmp_path / "people.csv").write_text("scan,site\nother,a\n")
    with pytest.raises(UsageError, match=r"has no column sight; did you mean 'site'"):
        embedded(by=("sight",), table=tmp_path / "people.csv")
    with pytest.raises(UsageError, match=r"its column scan names none of the scans"):
        embedded(by=("site",), table=tmp_path / "people.csv")
    (tmp_path / "people.csv").write_text("scan,site\nscan_0,n/a\n")
    with pytest.raises(UsageError, match=r"has no site of any of the scans; name another column"):
        embedded(by=("site",), table=tmp_path / "people.csv")
    assert not (tmp_path / "out").exists()
    embedded()
    with pytest.raises(UsageError, match="contains embeddings already; name another"):
        embedded()


def test_a_damaged_scan_is_named_and_the_others_embedded(scans, tmp_path, embedded):
    (scans / "scan_1.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match=r"1 of 3 scans could not be embedded, see rejected.csv"):
        embedded()
    assert np.load(tmp_path / "out/embeddings.npz")["id"].tolist() == ["scan_0", "scan_2"]
    assert [row["id"] for row in read(tmp_path / "out/rejected.csv")] == ["scan_1"]
