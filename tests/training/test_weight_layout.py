"""Weights that are stored channels last have the same gradients and resume to the same values."""

import pytest
import torch

import selfvox
from selfvox.models.build import build_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.runs.atomic_files import sha256
from selfvox.training.weight_layout import lay_out_weights

CPU = torch.device("cpu")


def unet(norm):
    torch.manual_seed(0)
    spec = {"name": "plain", "norm": norm, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]]}
    return Segmenter(build_encoder(spec, 3, 2), 3, norm)


def processor(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def layouts(network):
    """Whether the weights of its convolutions are channels last, of those where it can be seen."""
    weights = [weight for weight in network.parameters() if weight.ndim == 5]
    return {
        weight.is_contiguous(memory_format=torch.channels_last_3d)
        for weight in weights
        if not weight.is_contiguous()
    }


def test_gradients_are_those_of_the_usual_layout(monkeypatch):
    processor(monkeypatch, "AVX2")
    usual, laid_out = unet("group"), unet("group")
    lay_out_weights(laid_out, CPU)
    assert layouts(usual) == set()
    assert layouts(laid_out) == {True}
    image = torch.randn(2, 2, 8, 8, 8)
    for network in (usual, laid_out):
        network(image).square().mean().backward()
    torch.testing.assert_close(laid_out(image), usual(image))
    gradients = [[weight.grad for weight in network.parameters()] for network in (usual, laid_out)]
    torch.testing.assert_close(*gradients)


def test_a_training_has_the_losses_of_the_usual_layout(monkeypatch, shapes_store, tmp_path, small):
    settings = {**small, "task": "masked", "batch": 2, "steps": 6}
    settings["network"] = {"name": "plain", "norm": "group", "channels": [4, 8]}
    losses = []

    def note(step, metrics):
        losses.append(metrics["loss"])

    for capability in ("AVX2", "AVX512"):
        processor(monkeypatch, capability)
        out = tmp_path / capability
        selfvox.pretrain(shapes_store, out=out, on_metrics=note, **settings)
    laid_out, usual = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    assert laid_out == pytest.approx(usual, rel=1e-4)


@pytest.mark.parametrize(
    ("capability", "norm", "device"),
    [("AVX2", "instance", "cpu"), ("AVX512", "group", "cpu"), ("AVX2", "group", "cuda")],
)
def test_networks_that_it_does_not_make_faster_stay_as_they_are(
    monkeypatch, capability, norm, device
):
    processor(monkeypatch, capability)
    network = unet(norm)
    lay_out_weights(network, torch.device(device))
    assert layouts(network) == set()


def test_a_resumed_run_has_the_weights_of_one_that_was_not_stopped(
    monkeypatch, shapes_store, tmp_path, small
):
    processor(monkeypatch, "AVX2")
    settings = {**small, "task": "masked", "batch": 2, "save_every": 2, "steps": 4}
    settings["network"] = {"name": "plain", "norm": "group", "channels": [4, 8]}
    selfvox.pretrain(shapes_store, out=tmp_path / "alone", **settings)
    stopping = selfvox.training.loop.Stepper
    take = stopping.take

    def stops(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return take(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(stopping, "take", stops)
        with pytest.raises(KeyboardInterrupt):
            selfvox.pretrain(shapes_store, out=tmp_path / "resumed", **settings)
    selfvox.pretrain(shapes_store, out=tmp_path / "resumed", resume=True, **settings)
    alone, resumed = (
        sha256(tmp_path / name / "encoder" / "weights.safetensors") for name in ("alone", "resumed")
    )
    assert alone == resumed
