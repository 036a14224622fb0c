"""A network that is cut in two computes what it computed whole, with what was put behind some of its modules."""

import pytest
import torch
from torch import nn

from selfvox.uncertainty.split_network import split_network


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Branches(nn.Module):
    """Two early values, one of them skipping what is changed; a module that is called twice; a parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
        )
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        early = self.first(x)
        late = self.act(early)
        return self.act(self.second(late)) * self.scale + early


class Writes(Branches):
    """Adds into what is shared."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        early = self.first(x)
        late = self.act(self.second(x.expand(-1, 4, -1, -1)))
        if self.how == "method":
            early.add_(late)
        else:
            early += late
        return early


class Decides(Branches):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def whole(net, x):
    """What the network computes with hooks that double."""
    hook = net.act.register_forward_hook(lambda _, inputs, output: 2 * output)
    found = net(x)
    hook.remove()
    return found


@torch.no_grad()
def test_both_parts_together_are_the_network():
    net, x = Branches(), torch.randn(2, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    assert len(shared) == 2
    torch.testing.assert_close(late(*shared), whole(net, x), atol=0, rtol=0)
    assert (net(x) - whole(net, x)).abs().max() > 0.01


@torch.no_grad()
def test_the_early_part_can_be_used_again():
    net, x = Branches(), torch.randn(1, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    first = late(*shared)
    torch.testing.assert_close(late(*shared), first, atol=0, rtol=0)


@torch.no_grad()
def test_adding_into_what_is_shared_leaves_it_as_it_was():
    net, x = Writes("operator"), torch.randn(1, 1, 8, 8)
    early, late = split_network(net, {net.act: Double()})
    shared = early(x)
    for _ in range(2):
        torch.testing.assert_close(late(*shared), whole(net, x), atol=0, rtol=0)


@pytest.mark.parametrize("net", [Writes("method"), Decides()], ids=["writes", "decides"])
def test_what_cannot_be_shared_or_followed_is_not_cut(net):
    assert split_network(net, {net.act: Double()}) is None
