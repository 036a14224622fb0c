"""What is measured of embeddings and gradients, against closed forms and loops."""

import math

import pytest
import torch
from torch import nn

from selfvox.ops import losses
from selfvox.training import embedding_health


def test_the_same_embedding_over_and_over_has_no_spread_rank_1_and_no_uniformity():
    identical = torch.randn(1, 8).repeat(6, 1)
    assert embedding_health.spread(identical) == pytest.approx(0, abs=1e-6)
    assert embedding_health.effective_rank(identical) == pytest.approx(1)
    assert losses.uniformity(identical) == pytest.approx(0, abs=1e-5)
    assert losses.alignment(identical, identical) == 0


@pytest.mark.parametrize("d", [2, 5, 16])
def test_orthonormal_embeddings_have_as_many_ranks_as_directions(d):
    rotation = torch.linalg.qr(torch.randn(d, d))[0]
    assert embedding_health.effective_rank(3 * rotation) == pytest.approx(d)
    # all pairs are sqrt(2) apart
    assert losses.uniformity(rotation) == pytest.approx(-4, abs=1e-5)
    assert losses.alignment(rotation, rotation.roll(1, 0)) == pytest.approx(2, abs=1e-5)


def test_an_antipodal_pair_lies_2_apart():
    pair = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    assert losses.uniformity(pair) == pytest.approx(-8, abs=1e-5)
    assert losses.alignment(pair[:1], pair[1:]) == pytest.approx(4, abs=1e-5)


def test_an_even_sphere_has_a_spread_of_1():
    even = torch.cat([torch.eye(32), -torch.eye(32)])
    assert embedding_health.spread(even) == pytest.approx(1, abs=1e-6)


def test_every_measure_equals_a_loop():
    first = torch.randn(7, 5).double()
    second = torch.randn(7, 5).double()

    def unit(row):
        length = math.sqrt(sum(value * value for value in row))
        return [value / length for value in row]

    a, b = ([unit(row) for row in rows.tolist()] for rows in (first, second))
    columns = list(zip(*a, strict=True))
    deviations = [
        math.sqrt(sum((value - sum(column) / 7) ** 2 for value in column) / 7) * math.sqrt(5)
        for column in columns
    ]
    apart = [
        sum((p - q) ** 2 for p, q in zip(a[i], a[j], strict=True))
        for i in range(7)
        for j in range(i)
    ]
    pairs = [
        sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for x, y in zip(a, b, strict=True)
    ]
    roots = (
        torch.linalg.eigvalsh(first.T @ first).sqrt().tolist()
    )  # the singular values, another way
    shares = [root / sum(roots) for root in roots]
    assert embedding_health.spread(first) == pytest.approx(sum(deviations) / 5, rel=1e-5)
    assert losses.uniformity(first) == pytest.approx(
        math.log(sum(math.exp(-2 * d) for d in apart) / len(apart)), rel=1e-5
    )
    assert losses.alignment(first, second) == pytest.approx(sum(pairs) / 7, rel=1e-5)
    assert embedding_health.effective_rank(first) == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6
    )


def test_reached_is_the_share_of_parameters_whose_tensor_has_a_gradient():
    # 16 and 24 parameters
    used = nn.Linear(3, 4)
    unused = nn.Linear(5, 4)
    used(torch.ones(1, 3)).sum().backward()
    assert embedding_health.share_with_gradient(
        [*used.parameters(), *unused.parameters()]
    ) == pytest.approx(16 / 40)
    (0 * unused(torch.ones(1, 5))).sum().backward()  # a gradient of zeros is none
    assert embedding_health.share_with_gradient(
        [*used.parameters(), *unused.parameters()]
    ) == pytest.approx(16 / 40)


def test_a_score_is_paired_with_the_chance_of_its_own_task():
    scores = embedding_health.chance_scores(
        {
            "loss": 1,
            "accuracy": 0.5,
            "chance": 0.1,
            "rotation/accuracy": 0.4,
            "rotation/chance": 0.2,
            "masked/explained": 0.3,
            "simclr/accuracy": 0.9,
            "uniformity": -1,
        }
    )
    assert scores == {
        "accuracy": (0.5, 0.1),
        "rotation/accuracy": (0.4, 0.2),
        "masked/explained": (0.3, 0.0),
    }
    assert scores["rotation/accuracy"].above_chance == pytest.approx(0.25)
    assert (
        embedding_health.Score(1.0, 1.0).above_chance == 0
    )  # a batch that leaves one answer alone
