"""The first convolution of a network is adapted to another number of image channels."""

import pytest
import torch
from torch import nn

from selfvox.runs.weights import adapt_first_convolutions, load_strictly, state_tensors


def net(channels):
    return nn.Sequential(nn.Conv3d(channels, 5, 3), nn.ReLU(), nn.Conv3d(5, 4, 3))


@pytest.mark.parametrize(("old", "new"), [(1, 4), (2, 4), (4, 1), (3, 2)])
def test_every_policy_fits_and_touches_nothing_else(old, new):
    torch.manual_seed(0)
    tensors = state_tensors(net(old))
    for policy in ("mean", "tile", "random"):
        target = net(new)
        random = {name: tensor.clone() for name, tensor in state_tensors(target).items()}
        fitted = adapt_first_convolutions(tensors, target, policy)
        load_strictly(target, fitted, "here")
        assert all(
            torch.equal(fitted[name], tensors[name]) for name in tensors if name != "0.weight"
        )
        first = fitted["0.weight"]
        for out in range(5):
            for channel in range(new):
                expected = {
                    "mean": sum(tensors["0.weight"][out, index] for index in range(old))
                    / old
                    * old
                    / new,
                    "tile": tensors["0.weight"][out, channel % old] * old / new,
                    "random": random["0.weight"][out, channel],
                }[policy]
                assert torch.allclose(first[out, channel], expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mean", "tile"])
def test_one_image_in_all_channels_gives_the_same_output_as_before(policy):
    torch.manual_seed(0)
    old = net(1)
    new = net(4)
    image = torch.randn(2, 1, 8, 8, 8)
    load_strictly(new, adapt_first_convolutions(state_tensors(old), new, policy), "here")
    assert torch.allclose(new(image.expand(-1, 4, -1, -1, -1)), old(image), atol=1e-5)


def test_a_network_of_other_kernels_is_left_for_the_loader_to_refuse():
    fitted = adapt_first_convolutions(state_tensors(nn.Conv3d(1, 5, 5)), nn.Conv3d(2, 5, 3), "mean")
    assert fitted["weight"].shape[2:] == (5, 5, 5)
