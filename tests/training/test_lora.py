"""`--freeze lora`: a run saves an ordinary network, of which the encoder has changed a little."""

import json

import pytest
import torch

import selfvox
from selfvox.models.low_rank import RANK
from selfvox.prediction.load_model import load_segmenter
from selfvox.runs.weights import read_encoder, read_network, state_tensors
from selfvox.training import segmentation_objective


@pytest.fixture(scope="module")
def pretrained(shapes_store, tmp_path_factory):
    return selfvox.pretrain(
        shapes_store,
        out=tmp_path_factory.mktemp("pretrained") / "run",
        steps=2,
        batch=2,
        crop=(16, 16, 16),
        network={"name": "plain", "channels": [16, 16]},
        device="cpu",
    )


@pytest.fixture
def settings(pretrained):
    return {
        "encoder": str(pretrained),
        "freeze": "lora",
        "steps": 6,
        "crop": (16, 16, 16),
        "validate_every": 2,
        "labels": 2,
        "device": "cpu",
    }


def test_the_saved_encoder_differs_by_matrices_of_low_rank(
    shapes_store, tmp_path, pretrained, settings, capsys
):
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", keep="last", **settings)
    output = capsys.readouterr().err
    assert "0.011 M of low-rank changes of its layers are trained" in output.replace("\n", " ")
    before, _ = read_encoder(pretrained)
    after, _ = read_network(run)
    network = load_segmenter(run).network
    assert {f"encoder.{name}" for name in before} == {
        name for name in after if name.startswith("encoder.")
    }
    assert state_tensors(network).keys() == after.keys()
    for name, value in before.items():
        difference = after[f"encoder.{name}"] - value
        is_kernel = value.ndim > 1
        assert difference.any() == is_kernel, name
        if is_kernel and value.shape[1] > 1:
            rank = torch.linalg.matrix_rank(difference.flatten(1), rtol=1e-4)
            assert 0 < rank <= RANK < min(value.flatten(1).shape)


@pytest.mark.fault("F1", "fine-tuning of low-rank changes stopped and resumed", "the same weights")
def test_it_resumes_to_the_same_weights(shapes_store, tmp_path, settings, monkeypatch):
    forward = segmentation_objective.SegmentationObjective.forward

    def crashing(self, batch, step, rng):
        if step == 3:
            raise KeyError
        return forward(self, batch, step, rng)

    selfvox.finetune(shapes_store, out=tmp_path / "alone", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(segmentation_objective.SegmentationObjective, "forward", crashing)
        with pytest.raises(KeyError):
            selfvox.finetune(shapes_store, out=tmp_path / "resumed", **settings)
    selfvox.finetune(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    cards = [
        json.loads((tmp_path / name / "network" / "network.json").read_text())
        for name in ("alone", "resumed")
    ]
    assert cards[0] == cards[1]  # the weights' checksum is one of the keys
