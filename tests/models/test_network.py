"""The segmenter upon an encoder, and whole scans from windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.segmenter import Segmenter
from selfvox.models.sliding_window import segment_scan


def identity(x):
    return x


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((20, 13), (8, 8)),
        ((12, 17, 9), (8, 8, 8)),
        ((5, 6, 7), (8, 8, 8)),  # smaller than the window
        ((20, 3), (8, 8)),  # smaller along one axis, and by more than a mirror image
        ((8, 8, 8), (8, 8, 8)),
    ],
)
def test_a_whole_scan_through_the_identity_is_the_scan(shape, window, overlap):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = segment_scan(identity, image, window, overlap)
    assert torch.allclose(found, image.softmax(0), atol=1e-5)


def test_a_scan_smaller_than_the_window_is_mirrored_as_crops_are():
    image, seen = torch.randn(1, 5, 3, 8), []

    def look(x):
        seen.append(x.clone())  # the sliding window weighs its windows in place
        return x

    segment_scan(look, image, (8, 8, 8))
    expected = np.pad(image.numpy(), [(0, 0), (2, 1), (3, 2), (0, 0)], mode="symmetric")
    assert np.array_equal(seen[0][0].numpy(), expected)


def test_windows_are_weighted_towards_their_centres():
    window = torch.zeros(2, 8, 8)
    window[1, :, -1] = 8.0  # a network that errs at the right edge of its window

    def errs(x):
        return window.repeat(len(x), 1, 1, 1)

    found = segment_scan(errs, torch.zeros(1, 8, 12), (8, 8), overlap=0.5)
    # column 7 is the edge of the first window and near the centre of the second
    assert found[1, 2:6, 7].max() < 0.52
    assert found[1, :, 11].min() > 0.99


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
        [F.interpolate(each, size=(16,) * d, mode=mode) for each in encoder(image)], 1
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
        sum(isinstance(each, torch.nn.BatchNorm3d) for each in network.decoder.modules())
        == count / 2
    )


@pytest.mark.parametrize(("edge", "batches"), [(16, [2]), (48, [1])])
def test_a_small_volume_alone_on_the_cpu_is_computed_beside_its_copy(edge, batches):
    seen = []

    def network(x):
        seen.append(len(x))
        return torch.cat([x, -x], 1)

    image = torch.randn(1, edge, edge, edge)
    found = segment_scan(network, image, (edge,) * 3)
    assert seen == batches
    torch.testing.assert_close(found, torch.cat([image, -image]).softmax(0))
