"""A scan predicted in memory equals the files that the command line writes of it."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from selfvox.commands.predict import predict
from selfvox.data.formats.image import read_image
from selfvox.data.preparation.recipe import Intensity, Recipe
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.prediction import classify, segment
from selfvox.prediction.load_model import load_segmenter
from selfvox.prediction.trained_model import TrainedClassifier
from selfvox.runs.device import make_fabric
from selfvox.settings.verbs import MAPS, Predict
from selfvox.uncertainty.ensemble import PassSettings
from selfvox.uncertainty.mc_dropout import Dropout

from ..conftest import affine, blob, make_run, write_scan


def read_map(path):
    """A map as (class, *space), or (*space)."""
    values = nib.load(path).get_fdata()
    return np.moveaxis(values, -1, 0) if values.ndim == 4 else values


@pytest.fixture
def fabric():
    return make_fabric("cpu", 1, "fp32")


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)), affine(turn=0.4, axes=(1, 2, 0)))


@pytest.mark.parametrize("recipe", [{}, {"spacing_mm": (1.5, 1.5, 1.5)}], ids=["same", "resampled"])
def test_a_plain_prediction_equals_its_files(tmp_path, scan, fabric, recipe):
    run = make_run(tmp_path / "run", **recipe)
    out = tmp_path / "out"
    (path,) = predict(Predict(run=run, scans=scan, out=out, precision="fp32", probabilities=True))
    result = segment.predict_image(load_segmenter(run), read_image(scan), fabric=fabric)
    np.testing.assert_array_equal(result.label, np.asarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(result.probabilities, read_map(out / "a_probabilities.nii.gz"))
    assert (dict(result.maps), result.review) == ({}, None)


def test_votes_maps_and_review_equal_their_files(tmp_path, scan, fabric):
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    out = tmp_path / "out"
    (path,) = predict(
        Predict(
            run=runs[0],
            ensemble=(runs[1],),
            scans=scan,
            out=out,
            passes=2,
            vote="borda",
            maps=MAPS,
            seed=3,
            precision="fp32",
        )
    )
    settings = PassSettings(
        passes=2, dropout=Dropout(0.3, 0.0, "element", 3), vote="borda", maps=MAPS
    )
    models = [load_segmenter(run) for run in runs]
    result = segment.predict_image(
        models, read_image(scan), settings, probabilities=False, fabric=fabric
    )
    np.testing.assert_array_equal(result.label, np.asarray(nib.load(path).dataobj))
    assert result.probabilities is None
    files = {file.name: file for file in (out / "maps").glob("*.nii.gz")}
    assert {f"a_{ending}.nii.gz" for ending in result.maps} == set(files)
    for ending, values in result.maps.items():
        written = read_map(files[f"a_{ending}.nii.gz"])
        # to a 65535th of the largest number
        np.testing.assert_allclose(written, values, atol=values.max() / 2**16, rtol=0)
    (line,) = (out / "cases.jsonl").read_text().splitlines()
    assert json.loads(line)["review"] == json.loads(json.dumps(result.review))


def test_settings_that_cannot_be_are_refused_in_memory_too(tmp_path, scan):
    model = load_segmenter(make_run(tmp_path / "run"))
    image = read_image(scan)
    dropout = Dropout(0.3, 0.0, "element", 0)
    for settings, reason in (
        (PassSettings(passes=2), "passes: without dropout"),
        (PassSettings(passes=2, dropout=dropout, vote="weighted"), "vote_weights: "),
        (PassSettings(passes=2, dropout=dropout, vote="union"), "union_class: "),
        (
            PassSettings(passes=2, dropout=dropout, vote="union", union_class="lesions"),
            "did you mean 'lesion'",
        ),
    ):
        with pytest.raises(UsageError, match=reason):
            segment.predict_image(model, image, settings)


def test_the_class_in_memory_is_that_of_the_network(scan, fabric):
    torch.manual_seed(0)
    spec = plan_encoder({"name": "plain", "channels": (4, 8), "blocks": 1}, (16,) * 3, (1.0,) * 3)
    network = Classifier(build_encoder(spec, 3, 1), 3, ordinal=False).eval()
    torch.nn.init.normal_(network.head[-1].weight)
    recipe = Recipe(spatial_dims=3, channel_names=("MRI",), intensity=(Intensity(kind="mri"),))
    model = TrainedClassifier(network, recipe, (16, 16, 16), ("a", "b", "c"), "")
    image = read_image(scan)
    plain = classify.predict_image(model, image, fabric=fabric)
    assert sum(plain.probabilities) == pytest.approx(1)
    assert plain.name == "abc"[int(np.argmax(plain.probabilities))]
    assert (plain.low, plain.high) == (
        pytest.approx(plain.probabilities),
        pytest.approx(plain.probabilities),
    )
    several = classify.predict_image(
        model,
        image,
        PassSettings(passes=4, dropout=Dropout(0.3, 0.2, "element", 0)),
        fabric=fabric,
    )
    assert sum(several.votes) == 4
    assert several.trust == max(several.votes) / 4
    with pytest.raises(UsageError, match="which have no maps"):
        classify.predict_image(model, image, PassSettings(maps=("entropy",)))
