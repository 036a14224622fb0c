"""U-Net encoders: their plan by crop and spacing, and their layers."""

import math

import pytest
from torch import nn

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.unet import SMALLEST_MAP

ISOTROPIC = (1.0, 1.0, 1.0)


def edges(spec, crop):
    """The edges of the maps, level by level."""
    sizes = [list(crop)]
    for stride in spec["strides"]:
        sizes.append([size // step for size, step in zip(sizes[-1], stride, strict=True)])
    return [tuple(level) for level in sizes[1:]]


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
    ("norm", "layer"), [("instance", nn.InstanceNorm3d), ("batch", nn.BatchNorm3d)]
)
def test_the_norm_is_the_one_named(norm, layer):
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8], "norm": norm}, (8,) * 3, ISOTROPIC), 3, 1
    )
    assert sum(isinstance(module, layer) for module in encoder.modules()) == 4


def test_group_norm_has_eight_groups_where_the_channels_allow():
    encoder = build_encoder(
        plan_encoder({"channels": [4, 16], "norm": "group"}, (8,) * 2, (1.0, 1.0)), 2, 1
    )
    assert {
        module.num_groups for module in encoder.modules() if isinstance(module, nn.GroupNorm)
    } == {
        4,
        8,
    }


def test_convolutions_start_he_normal():
    encoder = build_encoder(plan_encoder({"channels": [64, 64]}, (8,) * 3, ISOTROPIC), 3, 1)
    last = [module for module in encoder.modules() if isinstance(module, nn.Conv3d)][-1]
    assert float(last.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 27)), rel=0.02)
    assert not last.bias.detach().any()
