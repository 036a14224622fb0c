"""Planning and building encoders: what the settings say is what is built, and what cannot be is refused by name."""

import importlib
import json
import math
import sys
from types import SimpleNamespace

import monai
import pytest
import torch
from torch import nn

from selfvox.errors import UsageError, WeightsError
from selfvox.models.adapters import FeatureNetwork
from selfvox.models.build import build_encoder, check_network, encoder_names, plan_encoder
from selfvox.models.unet import SMALLEST_MAP
from selfvox.runs.weights import save_part

ISOTROPIC = (1.0, 1.0, 1.0)


def edges(spec, crop):
    """The edges of the maps, level by level."""
    sizes = [list(crop)]
    for stride in spec["strides"]:
        sizes.append([size // step for size, step in zip(sizes[-1], stride, strict=True)])
    return [tuple(each) for each in sizes[1:]]


def test_a_level_halves_every_axis_of_equal_spacing():
    assert edges(plan_encoder("plain", (64, 64, 64), ISOTROPIC), (64,) * 3) == [
        (edge,) * 3 for edge in (64, 32, 16, 8, 4)
    ]


def test_a_coarse_axis_waits_until_the_others_are_as_coarse():
    spec = plan_encoder("plain", (64, 64, 16), (0.7, 0.7, 5.0))
    assert edges(spec, (64, 64, 16)) == [
        (64, 64, 16),
        (32, 32, 16),
        (16, 16, 16),
        (8, 8, 8),
        (4, 4, 4),
    ]


def test_a_flat_crop_goes_on_halving_its_long_axes():
    assert edges(plan_encoder("plain", (64, 64, 8), ISOTROPIC), (64, 64, 8))[-1] == (4, 4, 4)


@pytest.mark.parametrize("crop", [(8, 8), (40, 56, 40), (256, 64), (16, 8, 64)])
def test_no_map_is_smaller_than_its_limit_and_channels_match_the_levels(crop):
    spec = plan_encoder({"channels": [2, 3, 4, 5, 6, 7, 8]}, crop, (1.0,) * len(crop))
    assert SMALLEST_MAP <= min(edges(spec, crop)[-1]) < 2 * SMALLEST_MAP
    assert spec["channels"] == [2, 3, 4, 5, 6, 7, 8][: len(spec["strides"])]


@pytest.mark.parametrize(
    "network", ["residual", {"name": "plain", "channels": "4,8", "norm": "group"}]
)
def test_a_plan_is_plain_values_and_planning_it_again_changes_nothing(network):
    spec = plan_encoder(network, (16, 16, 16), ISOTROPIC)
    assert plan_encoder(json.loads(json.dumps(spec)), (64, 64, 64), ISOTROPIC) == spec


@pytest.fixture
def run(tmp_path):
    """A pre-training run whose task showed the encoder small views, so that it has few levels."""
    spec = plan_encoder({"name": "residual", "channels": [2, 4, 8, 16]}, (16, 16, 16), ISOTROPIC)
    card = {
        "network": spec,
        "spatial_dims": 3,
        "in_channels": 1,
        "recipe": {},
        "seen": {},
        "task": {"name": "cpc"},
    }
    save_part(tmp_path / "run" / "encoder", "encoder", build_encoder(spec, 3, 1), card)
    return tmp_path / "run"


def test_a_network_that_names_a_run_is_that_of_its_encoder_whatever_the_crop(run):
    spec = plan_encoder(str(run), (64, 64, 64), ISOTROPIC)
    assert spec == plan_encoder(
        {"name": "residual", "channels": [2, 4, 8, 16]}, (16, 16, 16), ISOTROPIC
    )
    assert len(spec["channels"]) == 3
    assert spec == plan_encoder({"name": str(run / "encoder")}, (32, 32, 32), ISOTROPIC)
    with pytest.raises(
        UsageError, match=r"^network: .*run is a network of 3D scans, and these are 2D"
    ):
        plan_encoder(str(run), (64, 64), ISOTROPIC[:2])
    with pytest.raises(
        UsageError, match=r"^network: .*run names its own settings; leave --network.norm out"
    ):
        plan_encoder({"name": str(run), "norm": "batch"}, (64, 64, 64), ISOTROPIC)
    with pytest.raises(WeightsError, match=r"has no encoder\.json"):
        plan_encoder(str(run.parent), (64, 64, 64), ISOTROPIC)


@pytest.mark.parametrize(
    ("norm", "layer"), [("instance", nn.InstanceNorm3d), ("batch", nn.BatchNorm3d)]
)
def test_the_norm_is_the_one_named(norm, layer):
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8], "norm": norm}, (8,) * 3, ISOTROPIC), 3, 1
    )
    assert sum(isinstance(each, layer) for each in encoder.modules()) == 4


def test_group_norm_has_eight_groups_where_the_channels_allow():
    encoder = build_encoder(
        plan_encoder({"channels": [4, 16], "norm": "group"}, (8,) * 2, (1.0, 1.0)), 2, 1
    )
    assert {each.num_groups for each in encoder.modules() if isinstance(each, nn.GroupNorm)} == {
        4,
        8,
    }


def test_convolutions_start_he_normal():
    encoder = build_encoder(plan_encoder({"channels": [64, 64]}, (8,) * 3, ISOTROPIC), 3, 1)
    last = [each for each in encoder.modules() if isinstance(each, nn.Conv3d)][-1]
    assert float(last.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 27)), rel=0.02)
    assert not last.bias.detach().any()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("plian", "network: .*did you mean 'plain'"),
        ("", "network: no encoder is called ''"),
        ("mona:ResNetFeatures", "network: "),
        ({"channels": [16]}, r"network\.channels"),
        ({"channels": [16, 0]}, r"network\.channels"),
        ({"blocks": 0}, r"network\.blocks"),
        ({"norm": "layer"}, r"network\.norm"),
        ({"depth": 3}, r"network\.depth"),
        ({"channels": [4, 8], "strides": [[1, 1, 1]]}, r"network\.strides"),
        ({"channels": [4, 8], "strides": [[1, 1], [2, 2]]}, r"network\.strides"),
        ("monai:ResNetFeature", "did you mean 'ResNetFeatures'"),
        (
            "monai:ResNetFeatures",
            "network: monai:ResNetFeatures cannot be made with these settings .*model_name",
        ),
        ({"name": "monai:BasicUNet", "features": [2] * 6}, "no list of feature maps"),
        ("timm:resnet18", "2D network"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(network, message):
    with pytest.raises(UsageError, match=message) as refusal:
        build_encoder(plan_encoder(network, (16, 16, 16), ISOTROPIC), 3, 1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mona:ResNetFeatures", "no encoder is called 'mona:ResNetFeatures'; known: monai:NAME"),
        ("monai:resnet10", "MONAI has no network 'resnet10'"),
        ("timm:resnet1O", "timm has no network 'resnet1O'.*did you mean 'resnet10'"),
        (
            {"name": "monai:ResNetFeatures", "pretrained": True},
            r"network\.pretrained: .*leave it out",
        ),
        ({"name": "timm:resnet10", "pretrained": "no"}, r"network\.pretrained: .*leave it out"),
    ],
)
def test_a_network_that_cannot_be_is_known_from_its_name(network, message, monkeypatch):
    known = ["resnet10"]
    timm = SimpleNamespace(
        is_model=known.__contains__, list_models=lambda: known, create_model=dict
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(UsageError, match=message):
        check_network(network)
    check_network({"name": "monai:ResNetFeatures", "pretrained": False})
    check_network("timm:resnet10")


def test_monai_fetches_no_weights(monkeypatch):
    class Fetches(nn.Module):
        def __init__(self, spatial_dims, in_channels, pretrained=True):
            super().__init__()
            assert not pretrained

        def forward(self, x):
            return [x]

    monkeypatch.setattr(monai.networks.nets, "Fetches", Fetches, raising=False)
    assert build_encoder(plan_encoder("monai:Fetches", (16, 16), (1.0, 1.0)), 2, 3).channels == (3,)


def test_every_name_that_is_offered_is_known():
    assert [name.partition(":")[0] for name in encoder_names()] == [
        "plain",
        "residual",
        "monai",
        "timm",
    ]


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


def test_a_torchvision_for_another_torch_is_told_from_a_missing_timm(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(
        UsageError, match=r"torchvision::nms .* install the torchvision that belongs to torch \d"
    ):
        build_encoder({"name": "timm:resnet18"}, 2, 1)


def test_a_timm_network_is_made_without_download_and_with_our_channels(monkeypatch):
    asked = {}

    def create_model(name, **settings):
        asked.update(name=name, **settings)
        raise RuntimeError(f"Unknown model ({name})")

    monkeypatch.setitem(
        sys.modules, "timm", SimpleNamespace(create_model=create_model, is_model=lambda _: True)
    )
    with pytest.raises(
        UsageError, match=r"timm:resnet cannot be made with these settings \(Unknown model"
    ):
        build_encoder({"name": "timm:resnet", "output_stride": 16}, 2, 3)
    assert asked == {
        "name": "resnet",
        "pretrained": False,
        "features_only": True,
        "in_chans": 3,
        "output_stride": 16,
    }
