"""Every encoder, be it nnU-Net's, MONAI's, timm's or a user's own, in 2D and 3D."""

import functools
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from selfvox import testing
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.testing import encoder_checks

EDGE = 32


class TimmFeatures(nn.Module):
    """As `timm.create_model(..., features_only=True)`: maps, finest first, and `feature_info`."""

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


def make_plain(d, channels, norm="group"):
    network = {"name": "plain", "channels": [4, 8, 16], "norm": norm}
    return build_encoder(plan_encoder(network, (EDGE,) * d, (1.0,) * d), d, channels)


def make_residual(d, channels, norm="group"):
    network = {"name": "residual", "channels": [4, 8, 16], "blocks": 1, "norm": norm}
    return build_encoder(plan_encoder(network, (EDGE,) * d, (1.0,) * d), d, channels)


def make_monai(d, channels):
    network = {"name": "monai:ResNetFeatures", "model_name": "resnet10"}
    return build_encoder(plan_encoder(network, (EDGE,) * d, (1.0,) * d), d, channels)


def make_timm_double(d, channels):
    def create_model(name, *, pretrained, features_only, in_chans):
        assert (name, pretrained, features_only) == ("double", False, True)
        return TimmFeatures(in_chans)

    timm = SimpleNamespace(create_model=create_model, is_model=lambda _: True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm", timm)
        return build_encoder(plan_encoder("timm:double", (EDGE,) * d, (1.0,) * d), d, channels)


def make_timm(d, channels):
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    return build_encoder(plan_encoder("timm:resnet10t", (EDGE,) * d, (1.0,) * d), d, channels)


def make_module(d, channels):
    """A module of a user's own, which is no `Encoder`."""
    conv = nn.Conv3d if d == 3 else nn.Conv2d

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = conv(channels, 4, 3, padding=1)
            self.coarse = conv(4, 8, 3, stride=2, padding=1)

        def forward(self, x):
            fine = self.fine(x)
            return fine, self.coarse(fine.relu())

    return Maps()


ENCODERS = [
    (make, d)
    for make in (make_plain, make_residual, make_monai, make_module, make_timm_double, make_timm)
    for d in (2, 3)
    if d == 2 or "timm" not in make.__name__
]


@pytest.mark.parametrize(
    ("make", "d"), ENCODERS, ids=[f"{make.__name__[5:]}-{d}D" for make, d in ENCODERS]
)
@pytest.mark.parametrize("check", testing.ENCODER_CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_an_encoder_is_satisfied(make, d, check):
    check(make, d)


@pytest.mark.parametrize("make", [make_plain, make_residual])
@pytest.mark.parametrize("d", [2, 3])
def test_the_embedding_keeps_what_the_plain_average_loses_to_the_instance_norm(make, d):
    encoder = encoder_checks.make_encoder(functools.partial(make, norm="instance"), d)
    images = encoder_checks.smooth_images(d)
    average = encoder(images)[-1].flatten(2).mean(2).detach()
    embedded = encoder.embed(images).detach()
    assert encoder_checks.relative_distance(embedded) > 2 * encoder_checks.relative_distance(
        average
    )
