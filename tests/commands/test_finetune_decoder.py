"""Fine-tuning with a decoder that pre-training trained: all of it but its output is loaded."""

import pytest
import torch

import selfvox
from selfvox.errors import WeightsError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.segmenter import Segmenter
from selfvox.runs.weights import read_decoder, read_network
from selfvox.training.finetune_network import _load_decoder

CROP = (16, 16, 16)
STILL = {"steps": 1, "learning_rate": 1e-9, "weight_decay": 0.0, "crop": CROP}


@pytest.fixture(scope="module")
def pretrained(shapes_store, tmp_path_factory):
    return selfvox.pretrain(
        shapes_store,
        out=tmp_path_factory.mktemp("pretrained") / "run",
        task="masked+rotation",
        steps=2,
        batch=2,
        crop=CROP,
        network={"channels": [4, 8, 16]},
        device="cpu",
    )


def test_the_decoder_of_a_task_that_trains_one_is_loaded_but_for_its_output(
    shapes_store, tmp_path, pretrained, capsys
):
    decoder = read_decoder(pretrained)
    run = selfvox.finetune(shapes_store, out=tmp_path / "run", encoder=str(pretrained), **STILL)
    tensors, card = read_network(run)
    shared = [name for name in decoder if not name.startswith("seg_layers.")]
    for name in shared:
        torch.testing.assert_close(tensors[f"decoder.{name}"], decoder[name], atol=1e-6, rtol=0)
    outputs = tensors["decoder.seg_layers.1.weight"]
    assert len(outputs) == len(card.classes) != len(decoder["seg_layers.1.weight"])
    output = capsys.readouterr().err
    assert f"loaded {len(shared)} tensors, 0.01 M values into the decoder, except its" in output
    assert "after it 0.00 M random values" in output


@pytest.mark.parametrize("case", ["linear", "folder"])
def test_a_decoder_that_is_not_wanted_is_left_out(shapes_store, tmp_path, pretrained, capsys, case):
    encoder = pretrained / "encoder" if case == "folder" else pretrained
    head = "linear" if case == "linear" else "full"
    selfvox.finetune(shapes_store, out=tmp_path / "run", encoder=str(encoder), head=head, **STILL)
    output = capsys.readouterr().err
    assert ("its decoder is left out, since --head linear has none" in output) == (case == "linear")
    assert "into the decoder" not in output


def test_a_decoder_goes_with_its_own_encoder_and_with_no_classifier(pretrained):
    tensors = read_decoder(pretrained)
    encoder = build_encoder(plan_encoder({"channels": [4, 8]}, CROP, (1.0,) * 3), 3, 1)
    with pytest.raises(WeightsError, match=r"runs/masked, its decoder: .* from another network"):
        _load_decoder(Segmenter(encoder, 2, "group"), tensors, "runs/masked")
    count, report = _load_decoder(Classifier(encoder, 2, False, False), tensors, "runs/masked")
    assert count == 0
    assert report == "its decoder is left out, since a classifier has none"
