"""The segmenter: its decoder and its linear readout."""

import pytest
import torch
import torch.nn.functional as F

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter


@pytest.mark.parametrize("d", [2, 3])
def test_a_segmenter_has_no_weight_that_it_does_not_use(d):
    encoder = build_encoder(plan_encoder({"channels": [4, 8, 16]}, (16,) * d, (1.0,) * d), d, 2)
    network = Segmenter(encoder, 3)
    logits = network(torch.randn(2, 2, *(16,) * d))
    assert logits.shape == (2, 3, *(16,) * d)
    logits.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("d", [2, 3])
def test_a_linear_readout_is_one_linear_map_of_all_features_at_a_voxel(d):
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8, 16]}, (16,) * d, (1.0,) * d), d, 1
    ).eval()
    network = Segmenter(encoder, 3, linear=True)
    image = torch.randn(2, 1, *(16,) * d)
    mode = "trilinear" if d == 3 else "bilinear"
    features = torch.cat(
        [F.interpolate(level, size=(16,) * d, mode=mode) for level in encoder(image)], 1
    )
    weight = torch.cat([layer.weight.flatten(1) for layer in network.decoder.layers], 1)
    bias = sum(layer.bias for layer in network.decoder.layers)
    expected = torch.einsum("oc,nc...->no...", weight, features) + bias.view(-1, *(1,) * d)
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "count"), [("instance", 0), ("batch", 8)])
def test_the_decoder_has_the_norm_named(norm, count):
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8, 16], "norm": norm}, (16,) * 3, (1.0,) * 3), 3, 1
    )
    network = Segmenter(encoder, 2, norm)
    assert (
        sum(isinstance(module, torch.nn.BatchNorm3d) for module in network.decoder.modules())
        == count / 2
    )
