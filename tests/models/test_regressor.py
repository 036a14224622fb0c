"""A regression network predicts in the unit of its targets."""

import pytest
import torch

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.regressor import Regressor


@pytest.fixture
def network():
    torch.manual_seed(0)
    spec = plan_encoder({"channels": (4, 8)}, (16, 16), (1.0, 1.0))
    return Regressor(build_encoder(spec, 2, 1))


def test_a_fresh_network_predicts_the_mean_and_knows_the_median(network):
    network.start_at([20.0, 30.0, 70.0])
    predicted = network(torch.randn(5, 1, 16, 16))
    assert predicted.shape == (5, 1)
    assert predicted.detach().flatten().tolist() == pytest.approx([40] * 5, abs=1)
    assert network.median.item() == 30


def test_the_loss_is_that_of_standardised_numbers(network):
    network.start_at([0.0, 20.0])  # a deviation of 10
    predicted = torch.tensor([[5.0], [30.0]])
    target = torch.tensor([0.0, 0.0])
    # 0.5 deviations: half of the square; 3 deviations: the distance minus a half
    assert network.loss(predicted, target).item() == pytest.approx((0.125 + 2.5) / 2)


def test_the_head_counts_in_deviations_from_the_mean(network):
    network.start_at([0.0, 20.0])
    torch.nn.init.zeros_(network.head[-1].weight)
    torch.nn.init.constant_(network.head[-1].bias, 1.5)
    assert network(torch.randn(2, 1, 16, 16)).flatten().tolist() == pytest.approx([25, 25])
