"""`predict --mirror`: the mean over mirror images that the training had, compared with loops."""

import csv
import functools
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import selfvox
from selfvox.commands import finetune
from selfvox.data.formats.image import read_image
from selfvox.errors import UsageError
from selfvox.models.sliding_window import segment_scan
from selfvox.ops.flips import mean_over_flips
from selfvox.ops.resize import resize
from selfvox.prediction.load_model import load_classifier, load_segmenter
from selfvox.runs.typed_json import write_checked
from selfvox.runs.weights import read_network_card

from ..conftest import affine, blob, make_run, write_scan

CPU = {"device": "cpu", "precision": "fp32"}
NETWORK = {"name": "plain", "channels": [4, 8]}


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Draw no curves: they take longer than the training."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune, "draw_curve", lambda *_: None)
        yield


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)), affine(turn=0.4, axes=(1, 2, 0)))


def mirrored_run(folder, *names, **settings):
    """A run with random weights whose training mirrored scans along these axes."""
    run = make_run(folder, **settings)
    file = run / "network" / "network.json"
    card = json.loads(file.read_text())
    write_checked(file, {**card, "mirror": list(names)})
    return run


def read_map(path):
    """Probabilities as (class, *space)."""
    return np.moveaxis(nib.load(path).get_fdata(), -1, 0)


def naive_mean(predict, data, axes):
    """Mean over all mirror images of an array (channel, *space), mirrored back."""
    results = []
    for chosen in itertools.product([False, True], repeat=len(axes)):
        mirrored = [1 + axis for axis, is_mirrored in zip(axes, chosen, strict=True) if is_mirrored]
        image = torch.from_numpy(np.flip(data, mirrored).copy())
        results.append(np.flip(predict(image).numpy(), mirrored))
    return np.mean(results, axis=0)


def test_a_mirrored_prediction_is_the_mean_of_a_naive_loop(tmp_path, scan):
    run = mirrored_run(tmp_path / "run", "left-right", "up-down")
    out = tmp_path / "out"
    (path,) = selfvox.predict(run, scan, out=out, mirror=True, probabilities=True, **CPU)
    model = load_segmenter(run)
    prepared = model.recipe.apply(read_image(scan))
    predict = functools.partial(segment_scan, model.network, window=model.window)
    naive = naive_mean(predict, prepared.data, (0, 2))
    expected = model.undo(naive.astype(np.float32), prepared.geometry)
    actual = read_map(out / "a_probabilities.nii.gz")
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.array_equal(np.asarray(nib.load(path).dataobj), model.decide(actual))
    selfvox.predict(run, scan, out=tmp_path / "plain", probabilities=True, **CPU)
    plain = read_map(tmp_path / "plain" / "a_probabilities.nii.gz")
    assert np.abs(plain - actual).max() > 1e-3
    assert json.loads((out / "predictions.json").read_text())["mirror"] is True
    for folder, is_mirrored in ((out, False), (tmp_path / "plain", True)):
        with pytest.raises(UsageError, match=r"with mirror .*; name another `out`"):
            selfvox.predict(run, scan, out=folder, mirror=is_mirrored, probabilities=True, **CPU)


def test_a_network_that_mirrors_with_the_scan_predicts_what_it_did():
    """Also where the windows of the mirrored scan are in other places."""
    torch.manual_seed(0)
    pointwise = torch.nn.Conv3d(1, 3, 1)
    predict = functools.partial(segment_scan, pointwise, window=(8, 8, 8))
    image = torch.randn(1, 21, 13, 10)
    torch.testing.assert_close(mean_over_flips(predict, image, (0, 1, 2)), predict(image))


def test_networks_and_passes_share_the_mirror_images(tmp_path, scan):
    runs = [mirrored_run(tmp_path / str(seed), "front-back", seed=seed) for seed in (0, 1)]
    both = {"ensemble": runs[1:], "mirror": True, "vote": "mean", "probabilities": True, **CPU}
    selfvox.predict(runs[0], scan, out=tmp_path / "both", **both)
    alone = []
    for number, run in enumerate(runs):
        out = tmp_path / f"alone{number}"
        selfvox.predict(run, scan, out=out, mirror=True, probabilities=True, **CPU)
        alone.append(read_map(out / "a_probabilities.nii.gz"))
    mean = read_map(tmp_path / "both" / "a_probabilities.nii.gz")
    np.testing.assert_allclose(mean, np.mean(alone, axis=0), atol=1e-5)
    selfvox.predict(runs[0], scan, out=tmp_path / "passes", passes=2, **both)
    passes = read_map(tmp_path / "passes" / "a_probabilities.nii.gz")
    assert np.abs(passes - mean).max() > 1e-3
    np.testing.assert_allclose(passes.sum(0), 1, atol=1e-5)


def test_a_run_that_was_trained_without_mirrored_scans_is_refused(tmp_path, scan):
    plain = make_run(tmp_path / "plain")
    with pytest.raises(UsageError, match="plain was trained without mirrored scans; leave"):
        selfvox.predict(plain, scan, out=tmp_path / "out", mirror=True, **CPU)
    run = mirrored_run(tmp_path / "run", "left-right")
    with pytest.raises(UsageError, match="plain was trained without mirrored scans"):
        selfvox.predict(run, scan, out=tmp_path / "out", mirror=True, ensemble=[plain], **CPU)
    assert not (tmp_path / "out").exists()


def test_slices_are_mirrored_along_the_axes_that_they_have(shapes_store, tmp_path, scan):
    settings = {"encoder": "none", "network": NETWORK, "slices": "axial", "steps": 1, **CPU}
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", mirror="all", **settings)
    assert read_network_card(run).mirror == ("left-right", "front-back")
    model = load_segmenter(run)
    assert model.mirror_axes == (0, 1)
    prepared = model.recipe.apply(read_image(scan))
    predict = functools.partial(
        segment_scan, model.network, window=model.window, slice_axis=model.slice_axis
    )
    naive = naive_mean(predict, prepared.data, (0, 1))
    # the scan is not like the shapes of the training
    result = selfvox.load_segmenter(run, **CPU).predict(scan, mirror=True, force=True)
    expected = model.undo(naive.astype(np.float32), prepared.geometry)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)
    plain = selfvox.finetune(shapes_store, out=tmp_path / "plain", **settings)
    assert read_network_card(plain).mirror is None
    assert "mirror" not in json.loads((plain / "network" / "network.json").read_text())


def test_a_mirrored_picture_is_classified_by_the_mean_of_a_naive_loop(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,grade"]
    for number in range(6):
        data = rng.integers(0, 255, (16, 20), np.uint8)
        Pillow.fromarray(data).save(scans / f"eye{number}.png")
        lines.append(f"eye{number}.png,{number % 2}")
    table = scans / "grades.csv"
    table.write_text("\n".join(lines) + "\n")
    run = selfvox.finetune(
        table, out=tmp_path / "run", encoder="none", network=NETWORK, steps=4, ordinal=False, **CPU
    )
    assert read_network_card(run).mirror == ("up-down", "left-right")
    (written,) = selfvox.predict(run, scans, out=tmp_path / "out", mirror=True, **CPU)
    model = load_classifier(run)
    rows = list(csv.DictReader(written.read_text().splitlines()))
    assert len(rows) == 6
    for number, row in enumerate(rows):
        prepared = model.recipe.apply(read_image(scans / f"eye{number}.png"))
        resized = resize(torch.from_numpy(prepared.data)[None], model.input_size)
        with torch.inference_mode():
            rows_of_flips = [
                model.probabilities(resized.flip(axes)) for axes in ([], [2], [3], [2, 3])
            ]
        expected = torch.cat(rows_of_flips).mean(0)
        actual = [float(row[f"probability_{name}"]) for name in model.classes]
        np.testing.assert_allclose(actual, expected, atol=1e-5)
