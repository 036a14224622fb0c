"""What every encoder must hold, be it nnU-Net's, MONAI's or timm's, in 2D and 3D."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.runs.weights import state_tensors

EDGE = 32


class TimmFeatures(nn.Module):
    """What timm's `create_model(..., features_only=True)` gives: a list of maps, finest first, and `feature_info`."""

    def __init__(self, in_chans):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.stage = nn.Sequential(
            nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.feature_info = SimpleNamespace(channels=lambda: [8, 12], reduction=lambda: [2, 4])

    def forward(self, x):
        fine = self.stem(x)
        return [fine, self.stage(fine)]


def make_plain(d, channels, monkeypatch):
    return build_encoder(
        plan_encoder({"name": "plain", "channels": [4, 8, 16]}, (EDGE,) * d, (1.0,) * d),
        d,
        channels,
    )


def make_residual(d, channels, monkeypatch):
    spec = plan_encoder(
        {"name": "residual", "channels": [4, 8, 16], "blocks": 1}, (EDGE,) * d, (1.0,) * d
    )
    return build_encoder(spec, d, channels)


def make_monai(d, channels, monkeypatch):
    spec = {"name": "monai:ResNetFeatures", "model_name": "resnet10"}
    return build_encoder(plan_encoder(spec, (EDGE,) * d, (1.0,) * d), d, channels)


def make_timm_double(d, channels, monkeypatch):
    def create_model(name, *, pretrained, features_only, in_chans):
        assert (name, pretrained, features_only) == ("double", False, True)
        return TimmFeatures(in_chans)

    monkeypatch.setitem(
        sys.modules, "timm", SimpleNamespace(create_model=create_model, is_model=lambda _: True)
    )
    return build_encoder(plan_encoder("timm:double", (EDGE,) * d, (1.0,) * d), d, channels)


def make_timm(d, channels, monkeypatch):
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    return build_encoder(plan_encoder("timm:resnet10t", (EDGE,) * d, (1.0,) * d), d, channels)


ENCODERS = [
    (make, d)
    for make in (make_plain, make_residual, make_monai, make_timm_double, make_timm)
    for d in (2, 3)
    if d == 2 or "timm" not in make.__name__
]


@pytest.fixture(
    params=ENCODERS, ids=lambda param: f"{param[0].__name__.removeprefix('make_')}-{param[1]}D"
)
def encoder(request, monkeypatch):
    make, d = request.param
    torch.manual_seed(0)
    return make(d, 1, monkeypatch)


@pytest.fixture(
    params=ENCODERS, ids=lambda param: f"{param[0].__name__.removeprefix('make_')}-{param[1]}D"
)
def of_three_channels(request, monkeypatch):
    make, d = request.param
    return make(d, 3, monkeypatch)


def smooth(d, count=6):
    """Images that differ as anatomy does: in where things are, not in how much of them there is."""
    coarse = torch.randn(count, 1, *(4,) * d, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(EDGE,) * d, mode="trilinear" if d == 3 else "bilinear")


def apart(vectors):
    """How far vectors lie from each other, as a share of their length."""
    return float(torch.pdist(vectors).mean() / vectors.norm(dim=1).mean())


def test_channels_and_strides_tell_the_truth(encoder):
    maps = encoder(smooth(encoder.spatial_dims))
    assert [each.shape[1] for each in maps] == list(encoder.channels)
    for each, strides in zip(maps, encoder.strides, strict=True):
        assert [EDGE // stride for stride in strides] == list(each.shape[2:])
    assert list(encoder.strides) == sorted(encoder.strides)


def test_an_embedding_is_as_wide_as_the_encoder_says(encoder):
    assert encoder.embed(smooth(encoder.spatial_dims)).shape == (6, encoder.width)


def test_different_images_have_different_embeddings(encoder):
    assert apart(encoder.embed(smooth(encoder.spatial_dims)).detach()) > 0.15


@pytest.mark.parametrize("make", [make_plain, make_residual])
@pytest.mark.parametrize("d", [2, 3])
def test_the_embedding_keeps_what_the_plain_average_loses_to_the_instance_norm(
    make, d, monkeypatch
):
    torch.manual_seed(0)
    encoder, x = make(d, 1, monkeypatch), smooth(d)
    average = encoder(x)[-1].flatten(2).mean(2).detach()
    assert apart(encoder.embed(x).detach()) > 2 * apart(average)


def test_a_segmenter_upon_it_gives_logits_of_the_inputs_size_and_trains_whole(encoder):
    d = encoder.spatial_dims
    network = Segmenter(encoder, 3)
    x = torch.randn(2, 1, *(EDGE,) * (d - 1), 2 * EDGE)
    logits = network(x)
    assert logits.shape == (2, 3, *x.shape[2:])
    logits.square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.ndim == 1 or weight.grad.any(), name


def test_the_embedding_trains_every_weight(encoder):
    encoder.embed(smooth(encoder.spatial_dims)).square().mean().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


def test_the_state_holds_every_tensor_once(encoder):
    network = Segmenter(encoder, 2)
    state = state_tensors(network)
    places = [tensor.data_ptr() for tensor in state.values()]
    assert len(places) == len(set(places))
    assert set(places) == {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert sum(name.startswith("encoder.") for name in state) == len(state_tensors(encoder))


def test_three_channels_go_in(of_three_channels):
    x = torch.randn(2, 3, *(EDGE,) * of_three_channels.spatial_dims)
    assert of_three_channels.embed(x).shape == (2, of_three_channels.width)
