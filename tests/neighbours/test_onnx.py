"""ONNX files: onnxruntime computes what torch does, and what is next to them suffices."""

import builtins
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import selfvox
from selfvox.data.preparation.normalise import Intensity
from selfvox.data.preparation.recipe import Recipe
from selfvox.errors import NumericalError, UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.neighbours import onnx
from selfvox.prediction.load_model import load_model
from selfvox.runs.weights import save_part

from ..conftest import blob, make_run, write_scan

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "onnx.md"
CANARY = "ANNA_KANARIA"
SEEN = {"subjects": [CANARY], "image_hashes": ["c0ffee"]}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A run with a canary among its subjects, and its network as ONNX."""
    folder = tmp_path_factory.mktemp(CANARY)
    run = make_run(folder / "run", spacing_mm=(1.5, 1.5, 1.5))
    return run, selfvox.export(run, to="onnx", out=folder / "model.onnx")


def make_classifier_run(folder, *, ordinal, d):
    torch.manual_seed(0)
    kind = Intensity(kind="mri") if d == 3 else Intensity(kind="photo", mean=0.5, std=0.25)
    recipe = Recipe(spatial_dims=d, channel_names=("MRI",), intensity=(kind,))
    spec = plan_encoder({"name": "plain", "channels": (4, 8), "blocks": 1}, (16,) * d, (1.0,) * d)
    network = Classifier(build_encoder(spec, d, 1), 4, ordinal)
    torch.nn.init.normal_(network.head[-1].weight)
    card = {
        "network": spec,
        "spatial_dims": d,
        "in_channels": 1,
        "recipe": recipe.to_dict(),
        "encoder": f"pre-trained on {CANARY}",
        "seed": 0,
        "crop": [16] * d,
        "slices": None,
        "head": "full",
        "classes": ["none", "mild", "moderate", "severe"],
        "ordinal": ordinal,
        "seen": SEEN,
        "step": 1,
        "validation_kappa": None,
        "validation_balanced_accuracy": None,
    }
    save_part(folder / "network", "network", network, card)
    return folder


def run_onnx(file, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def test_windows_of_volumes_are_segmented_as_by_torch(segmenter):
    run, file = segmenter
    network = load_model(run).network
    for batch in (1, 2, 5):
        images = torch.randn(batch, 1, 16, 16, 16)
        with torch.no_grad():
            expected = network(images)
        torch.testing.assert_close(run_onnx(file, images), expected, atol=1e-4, rtol=0)


def test_windows_of_pictures_are_segmented_as_by_torch(tmp_path):
    run = make_run(tmp_path / "run", spatial_dims=2, channel_names=("red", "green", "blue"))
    file = selfvox.export(run, to="onnx", out=tmp_path / "model.onnx")
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = load_model(run).network(images)
    torch.testing.assert_close(run_onnx(file, images), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("ordinal", "d"), [(True, 3), (False, 2)])
def test_classes_of_scans_have_the_probabilities_of_torch(tmp_path, ordinal, d):
    run = make_classifier_run(tmp_path / "run", ordinal=ordinal, d=d)
    file = selfvox.export(run, to="onnx", out=tmp_path / "model.onnx")
    images = torch.randn(3, 1, *(16,) * d)
    with torch.no_grad():
        expected = load_model(run).probabilities(images)
    actual = run_onnx(file, images)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert actual.std(0).max() > 1e-3  # not the same for every scan
    entries = json.loads((tmp_path / "model.json").read_text())
    assert entries["classes"] == ["none", "mild", "moderate", "severe"]
    assert entries["ordered"] is ordinal
    assert entries["output"]["shape"] == ["batch", 4]
    for path in (file, tmp_path / "model.json"):
        assert CANARY.encode() not in path.read_bytes()


def test_the_code_of_the_page_gives_the_prediction_of_the_command(segmenter, tmp_path, monkeypatch):
    run, file = segmenter
    scan = write_scan(tmp_path / "scan.nii.gz", blob((20, 17, 12)))
    for path in (file, file.with_suffix(".json")):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(code, PAGE.name, "exec"), names)
    expected = selfvox.load_segmenter(run, device="cpu", precision="fp32").predict(scan).label
    assert len(np.unique(expected)) > 1
    assert (names["label"] == expected).mean() > 0.999  # two classes may be equally probable


def test_nothing_in_the_files_names_people_or_folders(segmenter):
    _, file = segmenter
    package = str(Path(selfvox.__file__).parent)
    for path in (file, file.with_suffix(".json")):
        content = path.read_bytes()
        for name in (CANARY, package, "site-packages", "line 4"):
            assert name.encode() not in content


def test_the_size_in_the_json_is_that_of_the_file(segmenter):
    session = onnxruntime.InferenceSession(segmenter[1], providers=["CPUExecutionProvider"])
    entries = json.loads(segmenter[1].with_suffix(".json").read_text())
    for actual, key in ((session.get_inputs()[0], "input"), (session.get_outputs()[0], "output")):
        assert (actual.name, actual.shape) == (entries[key]["name"], entries[key]["shape"])


def test_outputs_other_than_those_of_torch_are_not_written(segmenter, tmp_path, monkeypatch):
    other = make_run(tmp_path / "run", seed=1)
    monkeypatch.setattr(onnx, "_convert", lambda *_: segmenter[1].read_bytes())
    with pytest.raises(NumericalError, match="differs from torch by"):
        selfvox.export(other, to="onnx", out=tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*model*"))


def test_other_runs_files_and_missing_libraries_are_refused(run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"end it in \.onnx"):
        selfvox.export(run, to="onnx", out=tmp_path / "model.pth")
    with pytest.raises(UsageError, match="leave `channels` out"):
        selfvox.export(run, to="onnx", out=tmp_path / "model.onnx", channels=2)
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "onnxscript":
            raise ImportError("no such module", name=name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"needs onnxscript; .*selfvox\[onnx\]"):
        selfvox.export(run, to="onnx", out=tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*model*"))
