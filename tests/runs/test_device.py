import platform

import pytest
import torch
from torch import nn

from selfvox.errors import ResourceError
from selfvox.runs.device import inference_mode, make_fabric, supports_bf16


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch):
        self.seen = batch["image"]
        self.computed = self.layer(self.seen)
        return self.computed


def test_mixed_precision_computes_in_bf16_and_leaves_the_images_as_they_are():
    fabric = make_fabric("cpu", 1, "bf16")
    recorder = Recorder()
    image = torch.randn(2, 4)
    fabric.setup(recorder)({"image": image})
    assert recorder.computed.dtype == torch.bfloat16
    assert torch.equal(recorder.seen, image)


def test_answers_are_computed_in_bf16_without_gradients():
    fabric, layer = make_fabric("cpu", 1, "bf16"), nn.Linear(4, 4)
    with inference_mode(fabric):
        answer = layer(torch.randn(2, 4))
    assert (answer.dtype, answer.requires_grad) == (torch.bfloat16, False)
    assert torch.is_grad_enabled()


def test_a_torch_without_onednn_as_on_apple_silicon_computes_in_fp32(monkeypatch):
    class NoSuchOperators:  # those of mkldnn are not there at all
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", NoSuchOperators())
    assert not supports_bf16("cpu")
    assert make_fabric("cpu", 1, "auto").strategy.precision.precision == "32-true"


@pytest.mark.parametrize(
    ("machine", "instructions", "pays"),
    [
        ("x86_64", False, False),
        ("x86_64", True, True),
        ("AMD64", False, False),
        ("aarch64", False, True),
    ],
)
def test_a_processor_that_only_emulates_bf16_computes_in_fp32(
    machine, instructions, pays, monkeypatch
):
    class Accepts:  # oneDNN says so of any processor with AVX-512, with bf16 instructions or without
        def _is_mkldnn_bf16_supported(self):
            return True

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", Accepts())
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert supports_bf16("cpu") == pays
    precision = make_fabric("cpu", 1, "auto").strategy.precision.precision
    assert precision == ("bf16-mixed" if pays else "32-true")


@pytest.mark.parametrize(("device", "kind"), [("auto", "cuda"), ("cuda", "cuda"), ("mps", "mps")])
def test_more_devices_than_there_are_is_refused(device, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(
        ResourceError, match=f"^devices: 2 of {kind} are asked for, 1 found; use fewer"
    ):
        make_fabric(device, 2, "fp32")
