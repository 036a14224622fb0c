"""Precision and devices follow the hardware; mixed precision leaves the images as they are."""

import ctypes
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
        self.image = batch["image"]
        self.computed = self.layer(self.image)
        return self.computed


def test_mixed_precision_computes_in_bf16_and_leaves_the_images_as_they_are():
    fabric = make_fabric("cpu", 1, "bf16")
    recorder = Recorder()
    image = torch.randn(2, 4)
    fabric.setup(recorder)({"image": image})
    assert recorder.computed.dtype == torch.bfloat16
    assert torch.equal(recorder.image, image)


def test_predictions_are_computed_in_bf16_without_gradients():
    fabric = make_fabric("cpu", 1, "bf16")
    layer = nn.Linear(4, 4)
    with inference_mode(fabric):
        prediction = layer(torch.randn(2, 4))
    assert (prediction.dtype, prediction.requires_grad) == (torch.bfloat16, False)
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
    class Accepts:  # as oneDNN does of any processor with AVX-512, with or without bf16
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
    with pytest.raises(ResourceError, match=f"^devices: 2 of {kind} requested, 1 found; use fewer"):
        make_fabric(device, 2, "fp32")


class Libc:
    """Records the calls of glibc's mallopt."""

    def __init__(self, name):
        assert name is None  # the C library of this process
        self.calls = []
        self.mallopt = lambda parameter, value: self.calls.append((parameter, value))


@pytest.mark.parametrize(
    ("device", "library", "is_kept"),
    [("cpu", "glibc", True), ("auto", "glibc", True), ("cpu", "", False), ("cuda", "glibc", False)],
)
def test_freed_memory_is_kept_for_the_next_step_on_a_cpu_with_glibc(
    device, library, is_kept, monkeypatch
):
    libc = Libc(None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, "2.36"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    make_fabric(device, 1, "fp32")
    # mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD
    expected = {-4: 0, -1: 2**31 - 1, -2: 2**28}
    assert dict(libc.calls) == (expected if is_kept else {})


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 2, 2), 1), ((1, 1, 1), 2), ((4, 4, 4), 1), ((5, 1), 2)]
)
def test_the_gradients_of_small_maps_in_mixed_precision_are_those_of_fp32(shape, stride):
    fabric = make_fabric("cpu", 1, "bf16")
    torch.manual_seed(0)
    layer = (nn.Conv3d if len(shape) == 3 else nn.Conv2d)(32, 32, 3, stride, 1)
    images = torch.randn(6, 32, *shape)
    answer = torch.randn_like(layer(images))
    (layer(images) * answer).sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    with fabric.autocast():
        output = layer(images)
    (output * answer).sum().backward()
    error = (layer.weight.grad - expected).norm() / expected.norm()
    assert float(error) < 0.02
    assert (output.dtype == torch.bfloat16) == (min(shape) >= 4)


@pytest.mark.parametrize("edge", [2, 4])
def test_convolutions_may_name_their_tensors(edge):
    images, weight = torch.randn(2, 3, edge, edge, edge), torch.randn(4, 3, 1, 1, 1)
    bias = torch.randn(4)
    with make_fabric("cpu", 1, "bf16").autocast():
        by_place = torch.conv3d(images.bfloat16(), weight, bias)
        by_name = torch.conv3d(input=images.bfloat16(), weight=weight, bias=bias)
    assert by_name.dtype == (torch.float32 if edge < 4 else torch.bfloat16)
    assert torch.equal(by_name, by_place)
