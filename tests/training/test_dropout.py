"""Dropout in fine-tuning is where the passes of `predict` have it; without rates there is none."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import selfvox
from selfvox.commands.predict import predict
from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.segmenter import Segmenter
from selfvox.runs.atomic_files import sha256
from selfvox.runs.card import DropoutRates
from selfvox.runs.weights import read_network_card
from selfvox.settings.verbs import Predict
from selfvox.training import segmentation_objective
from selfvox.training.augment import Augmentation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.whole_scan_task import WholeScanObjective
from selfvox.uncertainty.mc_dropout import Dropout, DropoutMasks, dropping
from selfvox.uncertainty.passes import SubNetworks

from ..conftest import blob, write_scan

RATES = DropoutRates(encoder=0.4, decoder=0.2, kind="element")
NETWORKS = pytest.mark.parametrize(
    ("name", "d"), [("plain", 3), ("plain", 2), ("residual", 3)], ids=["3D", "2D", "residual"]
)


def segmenter(name="plain", d=3):
    torch.manual_seed(0)
    spec = plan_encoder({"name": name, "channels": (4, 8), "blocks": 1}, (16,) * d, (1.0,) * d)
    return Segmenter(build_encoder(spec, d, 1), 3)


def image(d=3, batch=2):
    return torch.randn(batch, 1, *(16,) * d, generator=torch.Generator().manual_seed(1))


@NETWORKS
def test_training_drops_where_prediction_does(name, d):
    network = segmenter(name, d).eval()
    x = image(d, batch=1)
    masks = DropoutMasks(network.encoder, network.decoder, Dropout(0.4, 0.2, "element", 0))
    training = TrainingDropout(network.encoder, network.decoder, RATES)
    assert training.layers == masks.layers
    # with the masks of a pass at the places of the training: that pass
    with torch.inference_mode():
        with dropping(training.layers, masks.drop):
            masks.begin([3])
            trained = network(x)
        with SubNetworks(network, masks.dropout) as networks:
            predicted = networks.logits(networks.shared(x), [3], x.shape[2:])
    torch.testing.assert_close(trained, predicted, atol=1e-5, rtol=0)


@NETWORKS
def test_training_equals_activations_that_drop_themselves(name, d, monkeypatch):
    network = segmenter(name, d)
    rates = DropoutRates(encoder=0.4, decoder=0.4, kind="element")
    torch.manual_seed(5)
    with TrainingDropout(network.encoder, network.decoder, rates).active():
        dropped = network(image(d))

    def forward(self, x):
        return F.dropout(F.leaky_relu(x, self.negative_slope), 0.4)

    plain = network(image(d))
    monkeypatch.setattr(nn.LeakyReLU, "forward", forward)
    torch.manual_seed(5)
    assert torch.equal(dropped, network(image(d)))
    assert not torch.equal(dropped, plain)


def test_a_channel_is_dropped_as_a_whole_and_each_sample_by_itself():
    network = Classifier(segmenter().encoder, 3, ordinal=False)
    rates = DropoutRates(encoder=0.5, decoder=0.0, kind="channel")
    training = TrainingDropout(network.encoder, network.head, rates)
    torch.manual_seed(0)
    with training.active():
        dropped = nn.Sequential(training.layers[0][0])(torch.ones(8, 64, 4, 4, 4)).flatten(2)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amin(2), dropped.amax(2))
    assert len({tuple(sample.tolist()) for sample in dropped[:, :, 0]}) == 8


def test_a_classifier_of_pictures_is_trained_with_dropout_in_encoder_and_head(monkeypatch):
    network = Classifier(segmenter(d=2).encoder, 3, ordinal=True)
    rates = DropoutRates(encoder=0.4, decoder=0.4, kind="element")
    batch = {
        "image": image(d=2, batch=4),
        "spacing": torch.ones(4, 2),
        "answer": torch.tensor([0, 1, 2, 1]),
    }

    def loss(dropout):
        torch.manual_seed(3)
        objective = WholeScanObjective(network, Augmentation(None), 0, dropout)
        return objective(batch, 0, torch.Generator().manual_seed(0)).loss

    dropped = loss(TrainingDropout(network.encoder, network.head, rates))
    without = TrainingDropout(network.encoder, network.head, None)
    assert dropped != loss(without)

    def forward(self, x):
        return F.dropout(F.leaky_relu(x, self.negative_slope), 0.4)

    monkeypatch.setattr(nn.LeakyReLU, "forward", forward)
    assert dropped == loss(without)


def test_without_rates_nothing_is_drawn_or_changed():
    network = segmenter()
    state = torch.get_rng_state()
    plain = network(image())
    with TrainingDropout(network.encoder, network.decoder, None).active():
        assert torch.equal(network(image()), plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_without_activations_is_refused():
    with pytest.raises(UsageError, match="no activation layer to drop units after; set its rate"):
        TrainingDropout(segmenter().encoder, nn.Linear(1, 1), RATES)


def test_a_resumed_run_is_the_same_and_predicts_with_the_rates_of_its_training(
    shapes_store, tmp_path, small, monkeypatch, capsys
):
    settings = {**small, "encoder": "none", "steps": 3, "validate_every": 1, "keep": "last"}
    selfvox.finetune(shapes_store, out=tmp_path / "plain", **settings)
    settings |= {"encoder_dropout": 0.4, "decoder_dropout": 0.2}
    selfvox.finetune(shapes_store, out=tmp_path / "alone", **settings)
    forward = segmentation_objective.SegmentationObjective.forward

    def crashing(self, batch, step, rng):
        assert step < 2
        return forward(self, batch, step, rng)

    with monkeypatch.context() as patched:
        patched.setattr(segmentation_objective.SegmentationObjective, "forward", crashing)
        with pytest.raises(AssertionError):
            selfvox.finetune(shapes_store, out=tmp_path / "resumed", **settings)
    selfvox.finetune(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    digests = {
        name: sha256(tmp_path / name / "network" / "weights.safetensors")
        for name in ("plain", "alone", "resumed")
    }
    assert digests["alone"] == digests["resumed"] != digests["plain"]
    assert read_network_card(tmp_path / "alone").dropout == RATES
    assert read_network_card(tmp_path / "plain").dropout is None

    scan = write_scan(tmp_path / "a.nii.gz", blob((20, 17, 12)))
    said = {}
    for name in ("plain", "alone"):
        predict(
            Predict(
                run=tmp_path / name, scans=scan, out=tmp_path / "to" / name, passes=2, force=True
            )
        )
        said[name] = " ".join(capsys.readouterr().err.split())
        card = json.loads((tmp_path / "to" / name / "predictions.json").read_text())
        rates = (card["encoder_dropout"], card["decoder_dropout"], card["dropout_kind"])
        assert rates == {"plain": (0.3, 0, "element"), "alone": (0.4, 0.2, "element")}[name]
    assert "dropout was never trained with" in said["plain"]
    assert "trained with the same dropout" in said["alone"]
