"""Networks of MONAI and timm: made without a download, and refused with a reason."""

import importlib
import sys
from types import SimpleNamespace

import monai
import pytest
import torch
from torch import nn

from selfvox.errors import UsageError
from selfvox.models.adapters import FeatureNetwork
from selfvox.models.build import build_encoder, plan_encoder


def test_monai_fetches_no_weights(monkeypatch):
    class Fetches(nn.Module):
        def __init__(self, spatial_dims, in_channels, pretrained=True):
            super().__init__()
            assert not pretrained

        def forward(self, x):
            return [x]

    monkeypatch.setattr(monai.networks.nets, "Fetches", Fetches, raising=False)
    assert build_encoder(plan_encoder("monai:Fetches", (16, 16), (1.0, 1.0)), 2, 3).channels == (3,)


class ChannelsLast(nn.Module):
    """As timm's Swin: (batch, *space, channel)."""

    def forward(self, x):
        return [torch.zeros(len(x), 16, 16, 96), torch.zeros(len(x), 8, 8, 192)]


def test_maps_with_channels_last_are_refused():
    with pytest.raises(UsageError, match=r"ChannelsLast.*finest first"):
        FeatureNetwork(ChannelsLast(), 2, 1)


def test_a_timm_that_cannot_be_imported_is_an_error_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm cannot be imported.*selfvox\[timm\]"):
        build_encoder({"name": "timm:resnet18"}, 2, 1)


def test_a_torchvision_for_another_torch_is_distinguished_from_a_missing_timm(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(
        UsageError, match=r"torchvision::nms .* install the torchvision that belongs to torch \d"
    ):
        build_encoder({"name": "timm:resnet18"}, 2, 1)


def test_a_timm_network_is_made_without_download_and_with_our_channels(monkeypatch):
    received = {}

    def create_model(name, **settings):
        received.update(name=name, **settings)
        raise RuntimeError(f"Unknown model ({name})")

    monkeypatch.setitem(
        sys.modules, "timm", SimpleNamespace(create_model=create_model, is_model=lambda _: True)
    )
    with pytest.raises(
        UsageError, match=r"timm:resnet cannot be made with these settings \(Unknown model"
    ):
        build_encoder({"name": "timm:resnet", "output_stride": 16}, 2, 3)
    assert received == {
        "name": "resnet",
        "pretrained": False,
        "features_only": True,
        "in_chans": 3,
        "output_stride": 16,
    }
