"""Weights on disk are complete and finite, fit the network or are refused; pickles are not run."""

import json
import os
import struct

import pytest
import torch
from torch import nn

from selfvox.errors import WeightsError
from selfvox.runs.weights import load_strictly, load_tensors, read_encoder, save_part, state_tensors

CARD = {
    "network": {"name": "plain"},
    "spatial_dims": 2,
    "in_channels": 1,
    "crop": [16, 16],
    "slices": None,
    "spacing_mm": [1.0, 1.0],
    "recipe": {},
    "task": {"name": "rotation"},
    "weights": None,
    "seen": {"subjects": [], "image_hashes": []},
    "steps": 1,
    "seed": 0,
}


class Twice(nn.Module):
    """Registers one layer under two names, as nnU-Net's blocks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.all = nn.Sequential(self.conv, nn.BatchNorm2d(2))


@pytest.mark.fault("K6", "a header of 10^5 tiny tensors, and of 2^40 bytes", "refused at once")
@pytest.mark.parametrize("size", [6 * 10**6, 2**40, 2**64 - 1])
def test_a_header_of_more_than_any_network_is_refused_before_it_is_read(tmp_path, size):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(struct.pack("<Q", size) + b"{}")
    # as large as it says, without taking space
    os.truncate(file, min(size + 8, 10**7))
    with pytest.raises(WeightsError, match="header too large"):
        load_tensors(file)


def test_a_part_is_loaded_completely_and_reported(tmp_path):
    saved = Twice()
    loaded = Twice()
    save_part(tmp_path, "encoder", saved, {"name": "x"})
    tensors = load_tensors(tmp_path / "weights.safetensors")
    assert json.loads((tmp_path / "encoder.json").read_text())["name"] == "x"
    assert load_strictly(loaded, tensors, "here").startswith("7 tensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(state_tensors(saved).values(), state_tensors(loaded).values(), strict=True)
    )


@pytest.mark.fault(
    "F12 K3 K5",
    "a tensor missing, foreign, of another shape, not finite",
    "refused by its name, nothing is loaded",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv.weight"), "no tensor 'conv.weight'"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "'other' is not in the network"),
        (
            lambda tensors: tensors.update({"conv.bias": torch.zeros(5)}),
            r"\(5,\) and the network's is \(2,\)",
        ),
        (lambda tensors: tensors["conv.bias"].fill_(float("inf")), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_loaded(change, message):
    module = Twice()
    initial = {name: tensor.clone() for name, tensor in state_tensors(module).items()}
    tensors = {name: tensor.clone() + 1 for name, tensor in state_tensors(Twice()).items()}
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        load_strictly(module, tensors, "here")
    assert all(torch.equal(tensor, initial[name]) for name, tensor in state_tensors(module).items())


@pytest.mark.fault("F11 K1", "weights changed by a bit, without a card", "refused")
def test_a_part_with_changed_weights_or_without_a_card_is_refused(tmp_path):
    save_part(tmp_path, "encoder", Twice(), CARD)
    weights = tmp_path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        read_encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"has no encoder\.json"):
        read_encoder(tmp_path / "nowhere")


@pytest.mark.fault("K2 X1 X10", "a pickle in place of weights", "refused, nothing runs")
def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("MONAI_ALLOW_PICKLE", "1")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    torch.save({"weights": Evil()}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="safetensors"):
        load_tensors(tmp_path / "weights.safetensors")
    assert not canary.exists()
