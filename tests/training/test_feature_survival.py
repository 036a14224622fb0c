"""What is left of a pre-trained encoder is measured, and measuring changes no weight."""

import numpy as np
import pytest
import torch

import selfvox
from selfvox.runs.device import make_fabric
from selfvox.runs.run_folder import read_metrics
from selfvox.runs.weights import read_network
from selfvox.training.feature_survival import FeatureSurvival, linear_cka

from ..conftest import SMALL


def test_linear_cka_is_that_of_the_gram_matrices():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 5))
    second = 0.5 * first[:, :3] + rng.normal(size=(40, 3))
    centring = np.eye(40) - 1 / 40
    grams = [centring @ x @ x.T @ centring for x in (first, second)]
    expected = np.sum(grams[0] * grams[1]) / np.prod([np.linalg.norm(gram) for gram in grams])
    assert 0.1 < expected < 0.9
    assert linear_cka(*map(torch.tensor, (first, second))) == pytest.approx(expected)


def test_linear_cka_is_one_for_turned_and_scaled_features():
    features = torch.randn(50, 4, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert linear_cka(features, 3 * features @ turn + 7) == pytest.approx(1)


class Levels(torch.nn.Module):
    """Two levels: convolutions of the image."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x):
        fine = self.convolution(x)
        return [fine, fine[..., ::2, ::2, ::2]]


def test_features_survive_completely_until_a_weight_changes():
    encoder = Levels()
    samples = [{"image": torch.randn(1, 12, 12, 12)} for _ in range(2)]
    survival = FeatureSurvival(encoder, samples, make_fabric("cpu", 1, "fp32"))
    unchanged = survival.measure()
    assert unchanged == {"cka_level_1": pytest.approx(1), "cka_level_2": pytest.approx(1)}
    assert encoder.training
    torch.nn.init.normal_(encoder.convolution.weight)
    assert all(value < 0.99 for value in survival.measure().values())


def test_it_is_measured_at_validations_and_changes_no_weight(shapes_store, tmp_path, monkeypatch):
    selfvox.pretrain(shapes_store, out=tmp_path / "pre", task="rotation", steps=2, batch=2, **SMALL)
    small = {name: value for name, value in SMALL.items() if name != "network"}

    def finetune(name, **changed):
        return selfvox.finetune(
            shapes_store, out=tmp_path / name, steps=4, validate_every=2, keep="last",
            **{"encoder": tmp_path / "pre", "freeze": "never", **small, **changed},
        )  # fmt: skip

    short = {line["step"]: set(line) for line in read_metrics(finetune("short"))}
    assert "cka_level_1" in short[4] - short[2]
    monkeypatch.setattr("selfvox.training.finetune_run.SURVIVAL_STEPS", 4)
    run = finetune("measured")
    levels = {"cka_level_1", "cka_level_2"}
    lines = {line["step"]: levels & line.keys() for line in read_metrics(run)}
    assert lines == {2: levels, 4: levels}
    page = selfvox.report(run, out=tmp_path / "report").read_text()
    assert "Pre-trained features that are left at step 4" in page
    assert "level 2" in page
    # of a frozen encoder everything is left, and of random weights nothing is worth keeping
    for name, changed in (("frozen", {"freeze": "always"}), ("scratch", {"encoder": "none"})):
        assert not any(levels & line.keys() for line in read_metrics(finetune(name, **changed)))
    monkeypatch.setattr("selfvox.training.finetune_run._survival", lambda *_: None)
    without, _ = read_network(finetune("unmeasured"))
    measured, _ = read_network(run)
    assert all(torch.equal(tensor, without[name]) for name, tensor in measured.items())
