"""Low-rank changes: 0 at first, trained alone, and merged into the weights without a trace."""

import copy

import pytest
import torch
from torch import nn

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.low_rank import RANK, LowRankChange, add_low_rank, merge_low_rank, merged
from selfvox.runs.weights import state_tensors

SWIN = {"name": "monai:SwinTransformer", "feature_size": 12}


def encoder(network, d=3):
    torch.manual_seed(0)
    return build_encoder(plan_encoder(network, (32,) * d, (1.0,) * d), d, 1).eval()


def change(module):
    """Give every low-rank change random values, as a training would."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, LowRankChange):
            noise = torch.randn(layer.up.shape, generator=generator)
            layer.up.data = 0.1 * noise.to(layer.up)


@pytest.mark.parametrize(
    ("network", "d"),
    [
        ({"name": "plain", "channels": [4, 8]}, 3),
        ({"name": "residual", "channels": [4, 8], "blocks": 1}, 2),
        (SWIN, 2),
    ],
)
def test_changes_are_0_at_first_get_all_gradients_and_are_merged_to_the_same_network(network, d):
    module = encoder(network, d)
    before = {name: value.clone() for name, value in state_tensors(module).items()}
    image = torch.randn(1, 1, *(32,) * d)
    with torch.no_grad():
        maps = module(image)
    values = add_low_rank(module)
    changed = module(image)
    assert all(torch.equal(old, new) for old, new in zip(maps, changed, strict=True))

    sum(level.square().sum() for level in changed).backward()
    trained = [entry for entry in module.parameters() if entry.grad is not None]
    of_changes = [
        entry
        for layer in module.modules()
        if isinstance(layer, LowRankChange)
        for entry in layer.parameters()
    ]
    assert {*map(id, trained)} == {*map(id, of_changes)}
    assert sum(entry.numel() for entry in trained) == values

    change(module)
    twin = merged(module)
    with torch.no_grad():
        assert not torch.equal(module(image)[-1], maps[-1])
        for parallel, single in zip(module(image), twin(image), strict=True):
            assert torch.equal(parallel, single)
    after = state_tensors(twin)
    assert after.keys() == before.keys()
    for name, value in after.items():
        difference = (value - before[name]).detach()
        if name.endswith("weight") and value.ndim > 1:
            assert torch.linalg.matrix_rank(difference.flatten(1), rtol=1e-4) <= RANK
        else:
            assert not difference.any()  # biases, norms, tables of positions
    assert all(entry.requires_grad for entry in twin.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_the_change_of_a_convolution_is_two_convolutions_in_parallel(groups):
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 12, 3, stride=2, padding=1, groups=groups)
    plain = copy.deepcopy(layer)
    image = torch.randn(2, 4, 7, 6, 5)
    add_low_rank(layer)
    change(layer)
    low_rank = layer.parametrizations.weight[0]
    assert low_rank.down.shape == (RANK, 4 // groups * 27)
    parallel = plain(image)
    for group in range(groups):
        inputs = slice(group * 4 // groups, (group + 1) * 4 // groups)
        outputs = slice(group * 12 // groups, (group + 1) * 12 // groups)
        kernel = low_rank.down.view(RANK, 4 // groups, 3, 3, 3)
        narrow = nn.functional.conv3d(image[:, inputs], kernel, stride=2, padding=1)
        parallel[:, outputs] += nn.functional.conv3d(
            narrow, low_rank.up[outputs, :, None, None, None]
        )
    torch.testing.assert_close(layer(image), parallel, rtol=1e-4, atol=1e-5)


def test_merging_in_place_keeps_the_layers_and_a_network_without_changes():
    module = encoder({"name": "plain", "channels": [4, 8]})
    assert merged(module) is module
    layers = list(map(type, module.modules()))
    add_low_rank(module)
    merge_low_rank(module)
    assert list(map(type, module.modules())) == layers
    assert all(entry.requires_grad for entry in module.parameters())
