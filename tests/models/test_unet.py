"""U-Net encoders: their plan by crop and spacing, and their layers."""

import math

import pytest
import torch
from torch import nn

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, check_input, plan_encoder
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


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_tiles_that_end_in_one_voxel_have_embeddings_that_differ_and_finite_gradients(name, d):
    network = {"name": name, "channels": [8, 16, 32, 64, 128]}
    spec = plan_encoder(network, (64,) * d, (1.0,) * d)
    check_input(spec, (8,) * d)
    torch.manual_seed(0)
    encoder = build_encoder(spec, d, 1)
    tiles = torch.randn(6, 1, *(8,) * d)
    assert encoder(tiles)[-1].shape == (6, 128, *(1,) * d)
    embedded = encoder.embed(tiles)
    distances = torch.pdist(embedded.detach())
    assert float(distances.min()) > 0.1 * float(embedded.detach().norm(dim=1).mean())
    (embedded * torch.randn(embedded.shape)).sum().backward()
    for weight in encoder.parameters():
        assert weight.grad.isfinite().all()
        assert weight.ndim == 1 or weight.grad.any()


@pytest.mark.parametrize("crop", [(24, 40), (16, 24, 40), (13, 9)])
def test_a_residual_block_takes_maps_with_odd_edges(crop):
    spec = plan_encoder(
        {"name": "residual", "channels": [4] * 5}, (64,) * len(crop), (1.0,) * len(crop)
    )
    maps = build_encoder(spec, len(crop), 1)(torch.randn(2, 1, *crop))
    coarsest = tuple(math.ceil(edge / 16) for edge in crop)
    assert tuple(maps[-1].shape[2:]) == coarsest


@pytest.mark.parametrize(
    ("norm", "channels", "edge", "values"),
    [("instance", [64, 64], 2, 1), ("group", [16, 16], 2, 2), ("group", [4, 4], 2, 1)],
)
def test_a_map_of_too_few_values_for_its_norm_is_refused(norm, channels, edge, values):
    spec = plan_encoder({"channels": channels, "norm": norm}, (16,) * 3, ISOTROPIC)
    remedy = "more --network.channels" if norm == "group" else "--network.norm group"
    message = rf"{norm} norm takes the mean of {values} values; use a larger --crop, or {remedy}$"
    with pytest.raises(UsageError, match=message):
        check_input(spec, (edge,) * 3)
    check_input(spec, (8,) * 3)
    check_input({**spec, "norm": "batch"}, (edge,) * 3)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ([[1, 1, 1], [0, 2, 2]], r"network\.strides"),
        ([[1, 1, 1], [2, 2, -2]], r"network\.strides"),
        ([[1, 1, 1], [2, 2.5, 2]], r"network\.strides"),
        ([[8, 1, 1], [2, 4, 1]], r"network\.strides: are 16 together along x, where .* 8 voxels"),
    ],
)
def test_strides_that_no_crop_allows_are_refused(strides, message):
    with pytest.raises(UsageError, match=message):
        plan_encoder({"channels": [4, 8], "strides": strides}, (8, 8, 8), ISOTROPIC)
