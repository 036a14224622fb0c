"""Both parts of a split network together compute what the network with its layers does."""

import pytest
import torch
from torch import nn

from selfvox.uncertainty.split_network import split_network


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Branches(nn.Module):
    """Two early values, one skipping the changed layer; a module called twice; a parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        early = self.first(x)
        late = self.act(early)
        return self.act(self.second(late)) * self.scale + early


class Writes(Branches):
    """Adds into what is shared."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        early = self.first(x)
        late = self.act(self.second(x.expand(-1, 4, -1, -1)))
        if self.form == "method":
            early.add_(late)
        else:
            early += late
        return early


class Decides(Branches):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def run_with_hook(net, x):
    """What the network computes with hooks that double."""
    hook = net.act.register_forward_hook(lambda _, inputs, output: 2 * output)
    doubled = net(x)
    hook.remove()
    return doubled


@torch.no_grad()
def test_both_parts_together_are_the_network():
    net = Branches()
    x = torch.randn(2, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    assert len(shared) == 2
    torch.testing.assert_close(late(*shared), run_with_hook(net, x), atol=0, rtol=0)
    assert (net(x) - run_with_hook(net, x)).abs().max() > 0.01


@torch.no_grad()
def test_the_early_part_can_be_used_again():
    net = Branches()
    x = torch.randn(1, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    first = late(*shared)
    torch.testing.assert_close(late(*shared), first, atol=0, rtol=0)


@torch.no_grad()
def test_adding_into_what_is_shared_leaves_it_as_it_was():
    net = Writes("operator")
    x = torch.randn(1, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    for _ in range(2):
        torch.testing.assert_close(late(*shared), run_with_hook(net, x), atol=0, rtol=0)


@pytest.mark.parametrize("net", [Writes("method"), Decides()], ids=["writes", "decides"])
def test_a_network_that_cannot_be_traced_or_shared_is_not_split(net):
    assert split_network(net, {net.act: Double()}) is None
