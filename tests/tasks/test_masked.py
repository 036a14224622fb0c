"""Masked: as many blocks hidden as asked, nothing of them seen, and only they are scored."""

import itertools
import math

import pytest
import torch

from selfvox.errors import UsageError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.tasks import task_from_setting
from selfvox.tasks.masked import Masked, details

SHAPES = [(16, 24), (13, 10), (8, 12, 9)]  # the last block of an axis may be cut off


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network(task, d, channels=1):
    torch.manual_seed(0)
    encoder = build_encoder(
        plan_encoder({"channels": [4, 8], "blocks": 1, "norm": "group"}, (16,) * d, (1.0,) * d),
        d,
        channels,
    )
    return encoder, task.head(encoder)


def blocks(shape, block):
    """The slices of each block, and its place in the grid."""
    for place in itertools.product(*(range(math.ceil(edge / block)) for edge in shape)):
        yield place, tuple(slice(i * block, (i + 1) * block) for i in place)


@pytest.mark.parametrize("shape", SHAPES)
def test_details_equal_loops(shape):
    images = torch.randn(2, 3, *shape, generator=rng())
    actual = details(images, 4)
    for image, channel in itertools.product(range(2), range(3)):
        for _, block in blocks(shape, 4):
            values = images[image, channel][block].double()
            expected = (values - values.mean()) / (values.var(correction=0) + 0.01).sqrt()
            assert torch.allclose(actual[image, channel][block].double(), expected, atol=1e-5)


def test_the_noise_of_empty_air_is_hardly_asked():
    air = torch.randn(1, 1, 16, 16, generator=rng()) * 0.01 - 3
    assert details(air, 8).square().mean() < 0.02
    assert details(air * 1000, 8).square().mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hidden", [0.25, 0.6])
def test_every_image_has_as_many_hidden_blocks_as_asked_anywhere(shape, hidden):
    task = Masked(block=4, hidden=hidden).configure(shape, (1.0,) * len(shape))
    drawn = torch.cat(
        [task.make_batch(torch.zeros(50, 1, *shape), rng(seed))["hidden"] for seed in range(20)]
    )
    count = math.prod(drawn.shape[1:])
    assert set(drawn.flatten(1).sum(1).tolist()) == {round(hidden * count)}
    assert torch.allclose(
        drawn.float().mean(0), torch.tensor(round(hidden * count) / count), atol=0.08
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_explained_share_equal_loops(shape):
    task = Masked(block=4)
    d = len(shape)
    encoder, head = network(task, d, channels=2)
    torch.nn.init.normal_(head.decoder.seg_layers[-1].weight, std=0.3)
    batch = task.make_batch(torch.randn(2, 2, *shape, generator=rng()), rng(1))
    filled = batch["images"].clone()
    target = details(batch["images"], 4)
    for image, channel in itertools.product(range(2), range(2)):
        places = [
            (block, bool(batch["hidden"][(image, *place)])) for place, block in blocks(shape, 4)
        ]
        visible = [
            filled[image, channel][block].flatten() for block, hidden in places if not hidden
        ]
        for block, hidden in places:
            if hidden:
                filled[image, channel][block] = torch.cat(visible).mean()
    with torch.no_grad():
        prediction = head(encoder, filled)
        errors = []
        squares = []
        for image, (place, block) in itertools.product(range(2), blocks(shape, 4)):
            if batch["hidden"][(image, *place)]:
                index = (image, slice(None), *block)
                errors += (prediction[index] - target[index]).square().flatten().tolist()
                squares += target[index].square().flatten().tolist()
        outcome = task.loss(encoder, head, batch)
    error, variance = sum(errors) / len(errors), sum(squares) / len(squares)
    assert float(outcome.loss) == pytest.approx(error, rel=1e-4)
    assert float(outcome.metrics["explained"]) == pytest.approx(1 - error / variance, rel=1e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_the_answer_does_not_depend_on_hidden_voxels(d):
    task = Masked(block=4)
    shape = (16,) * d
    encoder, head = network(task, d)
    batch = task.make_batch(torch.randn(2, 1, *shape, generator=rng()), rng(1))
    hidden = batch["hidden"][:, None]
    for axis in range(d):
        hidden = hidden.repeat_interleave(4, 2 + axis)
    inputs = []
    forward = encoder.forward
    encoder.forward = lambda x: inputs.append(x.detach()) or forward(x)
    task.loss(encoder, head, batch)
    task.loss(encoder, head, batch | {"images": torch.where(hidden, 1e3, batch["images"])})
    assert torch.equal(*inputs)
    assert torch.equal(inputs[0][~hidden], batch["images"][~hidden])


@pytest.mark.parametrize("d", [2, 3])
def test_an_untrained_network_explains_nothing(d):
    task = Masked()
    shape = (32,) * d
    outcome = task.loss(
        *network(task, d), task.make_batch(torch.randn(4, 1, *shape, generator=rng()), rng())
    )
    assert float(outcome.metrics["explained"]) == pytest.approx(0, abs=0.02)
    assert float(outcome.loss.detach()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(
    ("noise", "least", "most"), [(0.0, 0, 0), (0.005, 0, 0), (0.02, -1, -1), (1.0, -0.1, 0.1)]
)
def test_one_flat_batch_does_not_outweigh_a_hundred_others(d, noise, least, most):
    task = Masked()
    images = -1 + noise * torch.randn(2, 1, *(32,) * d, generator=rng())
    encoder, head = network(task, d)
    torch.nn.init.constant_(head.decoder.seg_layers[-1].bias, 0.3)
    outcome = task.loss(encoder, head, task.make_batch(images, rng()))
    assert least <= float(outcome.metrics["explained"]) <= most


def test_a_perfect_answer_costs_nothing():
    class Told(torch.nn.Module):
        def forward(self, x):
            return [x]

    task = Masked()
    images = torch.randn(2, 1, 16, 16)
    _, head = network(task, 2)
    head.forward = lambda encoder, shown: details(images, 8)
    outcome = task.loss(Told(), head, task.make_batch(images, rng()))
    assert [float(outcome.loss), float(outcome.metrics["explained"])] == [0, 1]


@pytest.mark.parametrize(
    ("options", "name"),
    [({"block": 32}, "block"), ({"hidden": 0.05}, "hidden"), ({"hidden": 0.95}, "hidden")],
)
def test_a_question_about_nothing_or_everything_is_refused(options, name):
    with pytest.raises(UsageError, match=rf"^task\.{name}:"):
        task_from_setting({"name": "masked", **options}).configure((16, 24), (1.0, 1.0))
