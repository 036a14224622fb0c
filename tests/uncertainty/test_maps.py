"""Maps equal numpy and closed forms, and are on the scan's own grid."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from selfvox.commands.evaluate import evaluate
from selfvox.commands.predict import predict
from selfvox.settings.verbs import MAPS, Evaluate, Predict
from selfvox.uncertainty import maps
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling

from ..conftest import affine, blob, make_run, write_scan

WANTED = (5, 25, 50, 75, 95)  # percentiles


@pytest.mark.parametrize("passes", [1, 2, 3, 7, 20, 33, 100])
def test_percentiles_are_numpys(passes, monkeypatch):
    monkeypatch.setattr(maps, "CHUNK", 400)
    values = np.random.default_rng(passes).integers(0, 256, (passes, 1000)).astype(np.uint8)
    before = values.copy()
    np.testing.assert_allclose(
        maps.percentiles(values, WANTED), np.percentile(values, WANTED, axis=0), atol=1e-4
    )
    np.testing.assert_array_equal(values, before)


def tallied(probabilities, tmp_path):
    passes, classes, *space = probabilities.shape
    tally = VoteAccumulator(
        passes,
        ClassLabelling(classes),
        space,
        {"squares", "entropies"},
        torch.device("cpu"),
        tmp_path / "spill",
    )
    for number, planes in enumerate(probabilities):
        tally.add(number, (slice(3, None),), planes[:, 3:])
        tally.add(number, (slice(0, 3),), planes[:, :3])
    return tally


def test_maps_are_what_their_formulas_say(tmp_path):
    probabilities = torch.rand(9, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    tally = tallied(probabilities, tmp_path)
    p = probabilities.double().numpy()
    mean = p.mean(0)
    entropy = -(mean * np.log(mean)).sum(0)
    np.testing.assert_allclose(maps.entropy_map(tally), entropy, atol=1e-5)
    information = entropy + (p * np.log(p)).sum(1).mean(0)
    np.testing.assert_allclose(maps.mutual_information_map(tally), information, atol=1e-5)
    np.testing.assert_allclose(maps.variance_map(tally), p.var(0), atol=1e-6)
    exact = np.percentile(p, WANTED, axis=0)
    np.testing.assert_allclose(
        maps.percentile_maps(tally), exact, atol=1 / 510 + 5e-4
    )  # 255ths, float16


def test_passes_that_agree_have_no_mutual_information_and_no_variance(tmp_path):
    single = torch.rand(1, 3, 5, 4, 6).softmax(1)
    tally = tallied(single.expand(6, *single.shape[1:]), tmp_path)
    assert maps.mutual_information_map(tally).max() < 1e-6
    assert maps.variance_map(tally).max() < 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"spacing_mm": (1.5, 1.5, 1.5)}], ids=["same grid", "resampled"]
)
def test_maps_have_the_grid_of_the_scan_and_are_not_taken_for_labels(tmp_path, options):
    run = make_run(tmp_path / "run", **options)
    scan = write_scan(
        tmp_path / "in" / "a.nii.gz", blob((20, 17, 12)), affine(turn=0.4, axes=(1, 2, 0))
    )
    out = tmp_path / "out"
    (path,) = predict(
        Predict(run=run, scans=scan, out=out, passes=4, maps=MAPS, probabilities=True)
    )
    assert not [file.name for file in out.iterdir() if ".part." in file.name]
    probability = nib.load(out / "a_probabilities.nii.gz").get_fdata()
    shapes = {file.name: nib.load(file).shape for file in (out / "maps").glob("*.nii.gz")}
    scalar = ("a_entropy.nii.gz", "a_mutual-information.nii.gz")
    assert shapes.pop("a_variance.nii.gz") == (20, 17, 12, 3)
    assert [shapes.pop(name) for name in scalar] == [(20, 17, 12)] * 2
    assert shapes == {f"a_percentile-{rank:02}.nii.gz": (20, 17, 12, 3) for rank in WANTED}
    for file in (out / "maps").glob("*.nii.gz"):
        np.testing.assert_array_equal(nib.load(file).affine, nib.load(scan).affine)
    low, high = (
        nib.load(out / "maps" / f"a_percentile-{rank}.nii.gz").get_fdata() for rank in ("05", "95")
    )
    assert (low <= high + 1e-6).all()
    assert ((low - 0.01 <= probability) & (probability <= high + 0.01)).mean() > 0.9
    # outside the foreground box nothing is unsure
    outside = probability[..., 0] == 1
    assert outside.any()
    assert nib.load(out / "maps" / "a_entropy.nii.gz").get_fdata()[outside].max() == 0
    with Pillow.open(out / "maps" / "a_maps.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    write_scan(
        tmp_path / "truth" / "a.nii.gz", np.asarray(nib.load(path).dataobj), nib.load(scan).affine
    )
    rows = evaluate(Evaluate(predictions=out, truth=tmp_path / "truth"))
    assert {row["dice"] for row in rows} == {1.0}


def test_regions_have_percentiles_and_volumes_of_their_own(tmp_path):
    run = make_run(tmp_path / "run", regions={"whole": [1, 2], "lesion too": [2]})
    scan = write_scan(tmp_path / "in" / "a.nii.gz", blob((20, 17, 12)))
    predict(Predict(run=run, scans=scan, out=tmp_path / "out", passes=5, maps=("percentiles",)))
    maps_of = {
        percentile: nib.load(
            tmp_path / "out" / "maps" / f"a_percentile-{percentile:02}.nii.gz"
        ).get_fdata()
        for percentile in WANTED
    }
    assert maps_of[50].shape == (20, 17, 12, 5)
    for percentile in WANTED:
        # of each pass, what is not whole is background: the percentiles are mirrored
        background = maps_of[100 - percentile][..., 0]
        foreground = maps_of[percentile][..., 3]
        np.testing.assert_allclose(foreground, 1 - background, atol=2 / 255)
        np.testing.assert_array_equal(maps_of[percentile][..., 4], maps_of[percentile][..., 2])
    (row,) = csv.DictReader((tmp_path / "out" / "review.csv").read_text().splitlines())
    voxel = (
        float(row["whole ml"])
        / (np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj) > 0).sum()
    )
    assert voxel == pytest.approx(1.0 * 1.2 * 2.0 / 1000, rel=1e-4)
    assert [
        row[f"lesion too {column}"] for column in ("ml", "spread low", "spread high", "agreement")
    ] == [row[f"lesion {column}"] for column in ("ml", "spread low", "spread high", "agreement")]
    assert float(row["whole spread low"]) <= float(row["whole spread high"])


@pytest.mark.parametrize(
    "parts", [[("whole", (1, 2)), ("core", (2,))], [("none", (0,)), ("a", (1,)), ("b", (2,))]]
)
def test_the_picture_has_a_row_of_percentiles_for_all_but_the_background(tmp_path, parts):
    space = (12, 10, 8)
    heat = np.random.default_rng(0).random((len(WANTED), len(parts), *space)).astype(np.float16)
    label = (np.indices(space).sum(0) > 14).astype(np.uint16)
    picture = maps.MapPicture(
        image=heat[0, 0].astype(np.float32),
        labels={"vote": label},
        parts=parts,
        overlays={},
        percentiles=list(heat),
        spacing_mm=(1, 1, 1),
    )
    maps.draw_maps(tmp_path / "a.png", picture)
    with Pillow.open(tmp_path / "a.png") as picture:
        assert picture.height == round((0.4 + 2.7 * (1 + 2)) * 90)


@pytest.mark.parametrize("space", [(6, 5, 4), (5, 6)], ids=["volume", "picture"])
def test_every_panel_shows_the_front_of_a_volume_on_top_and_a_picture_as_it_is(
    tmp_path, monkeypatch, space
):
    """One bright corner: the left anterior voxel of a volume, the first pixel of a picture."""
    corner = (0, space[1] - 1, 2) if len(space) == 3 else (0, 0)
    values = np.zeros(space, np.float32)
    values[corner] = 1
    figures = []
    monkeypatch.setattr(
        maps.plotting, "save_figure", lambda figure, *_, **__: figures.append(figure)
    )
    picture = maps.MapPicture(
        image=values,
        labels={"vote": values.astype(np.uint16)},
        parts=[("background", (0,)), ("lesion", (1,))],
        overlays={"entropy": values},
        percentiles=[np.stack([1 - values, values])] * len(WANTED),
        spacing_mm=(1.0,) * len(space),
    )
    maps.draw_maps(tmp_path / "a.png", picture)
    panels = [axes for axes in figures[0].axes if axes.get_title()]
    assert len(panels) == 2 + len(WANTED)
    for axes in panels:
        # the first row of an array is drawn on top
        bottom, top = axes.get_ylim()
        assert bottom > top
        for image in axes.images:
            array = np.asarray(image.get_array())
            assert np.argwhere(array == array.max()).tolist() == [[0, 0]]
        for outline in axes.collections:
            assert np.abs(outline.get_paths()[0].vertices).max() <= 1


def test_a_picture_gets_maps_too(tmp_path):
    run = make_run(tmp_path / "run", spatial_dims=2, crop=32)
    scan = tmp_path / "in" / "eye.png"
    scan.parent.mkdir()
    Pillow.fromarray(blob((40, 36)).astype(np.uint8)).save(scan)
    predict(
        Predict(
            run=run, scans=scan, out=tmp_path / "out", passes=3, maps=("percentiles", "entropy")
        )
    )
    names = {path.name for path in (tmp_path / "out" / "maps").iterdir()}
    percentiles = {f"eye_percentile-{percentile:02}.tif" for percentile in WANTED}
    assert names == {*percentiles, "eye_entropy.tif", "eye_maps.png"}


def test_a_killed_scan_leaves_no_passes_behind(run, scans, tmp_path):
    out = tmp_path / "out"
    options = {"passes": 3, "maps": ("percentiles",)}
    predict(Predict(run=run, scans=scans, out=out, **options))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / ".1.part.scan_0.passes").write_bytes(b"half")
    (out / "maps" / ".1.part.scan_0_maps.png").write_bytes(b"half")
    (out / "maps" / "scan_1_percentile-05.nii.gz").unlink()
    predict(Predict(run=run, scans=scans, out=out, **options))
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # with the times of the work
    changing = ("cases.jsonl", "log.txt")
    assert {path: data for path, data in after.items() if path.name not in changing} == {
        path: data for path, data in before.items() if path.name not in changing
    }
