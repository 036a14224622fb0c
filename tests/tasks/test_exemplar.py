"""Exemplar: an image, a copy that was transformed in one resampling, and another image that is never the same."""

import math

import pytest
import torch
from torch import nn

from selfvox.errors import UsageError
from selfvox.losses import nt_xent
from selfvox.pretext import from_setting
from selfvox.tasks import exemplar
from selfvox.tasks.exemplar import Exemplar


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def suited(d=3, **options):
    return from_setting({"name": "exemplar", **options}).suited_to((16,) * d, (1.0,) * d)


class Flat(nn.Module):
    """An encoder whose embedding is the image itself."""

    def embed(self, x):
        return x.flatten(1)


def answer(task, batch):
    return task.loss(Flat(), nn.Identity(), batch)


@pytest.mark.parametrize("distance", ["squared", "plain"])
def test_loss_and_accuracy_equal_loops(distance):
    task = suited(2, distance=distance, margin=0.7)
    batch = task.ask(torch.randn(6, 1, 8, 8, generator=rng()), rng(1))
    unit = [(view / view.norm()).flatten().tolist() for view in batch["views"].double()]
    total, ordered = 0.0, 0
    for i, other in enumerate(batch["other"].tolist()):
        near, far = (sum((a - b) ** 2 for a, b in zip(unit[i], unit[k], strict=True)) for k in (i + 6, other))
        if distance == "plain":
            near, far = math.sqrt(near), math.sqrt(far)
        total, ordered = total + max(0.0, near - far + 0.7), ordered + (near < far)
    outcome = answer(task, batch)
    assert float(outcome.loss) == pytest.approx(total / 6, rel=1e-5)
    assert float(outcome.metrics["accuracy"]) == pytest.approx(ordered / 6)
    assert float(outcome.metrics["chance"]) == 0.5


def test_collapsed_embeddings_cost_the_margin_and_have_no_spread():
    outcome = answer(suited(2), {"views": torch.ones(8, 1, 4, 4), "other": torch.arange(4).roll(1)})
    assert float(outcome.loss) == pytest.approx(1.0)
    assert float(outcome.metrics["embedding_std"]) == pytest.approx(0, abs=1e-6)
    assert float(outcome.metrics["accuracy"]) == 0


def test_the_contrastive_objective_is_nt_xent_over_images_and_copies():
    task = suited(2, objective="contrastive", temperature=0.3)
    batch = task.ask(torch.randn(5, 1, 8, 8), rng())
    assert float(answer(task, batch).loss) == pytest.approx(float(nt_xent(batch["views"].flatten(1), 0.3).loss))


def test_one_head_serves_all_three():
    """With a head for each, biases alone reach loss zero; with one, an encoder that sees nothing pays the margin."""
    task, encoder = suited(2), Flat()
    encoder.width = 16
    outcome = task.loss(encoder, task.head(encoder), {"views": torch.zeros(8, 1, 4, 4), "other": torch.arange(4)})
    assert float(outcome.loss.detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_other_image_is_never_the_image_itself_and_each_other_equally_often(count):
    drawn = torch.stack([suited(2).ask(torch.zeros(count, 1, 8, 8), rng(seed))["other"] for seed in range(600)])
    shares = nn.functional.one_hot(drawn, count).float().mean(0)
    assert not shares.diagonal().any()
    assert torch.allclose(shares[~torch.eye(count, dtype=torch.bool)], torch.tensor(1 / (count - 1)), atol=0.1)


@pytest.mark.parametrize("d", [2, 3])
def test_images_stay_and_their_copies_are_made_in_one_resampling(monkeypatch, d):
    calls, resample = [], exemplar.resample
    monkeypatch.setattr(exemplar, "resample", lambda x, *maps: calls.append(len(x)) or resample(x, *maps))
    images = torch.randn(4, 2, *(8,) * d)
    first, copies = suited(d).ask(images, rng())["views"].chunk(2)
    assert calls == [4]
    assert torch.equal(first, images)
    assert ((copies - images).abs().amax(tuple(range(1, d + 2))) > 0.1).all()


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 12)])
def test_nothing_is_filled_in_at_the_borders_of_a_copy(monkeypatch, shape):
    monkeypatch.setattr(exemplar, "brightness", lambda x, shift: x)
    images = torch.full((6, 2, *shape), 7.5)
    for seed in range(10):
        copies = suited(len(shape), zoom=4).ask(images, rng(seed))["views"][6:]
        assert torch.allclose(copies, torch.tensor(7.5), atol=1e-4)


def test_brightness_and_contrast_change_an_image_by_a_straight_line(monkeypatch):
    monkeypatch.setattr(exemplar, "resample", lambda x, *maps: x)
    images, copies = suited(2).ask(torch.randn(50, 1, 16, 16), rng())["views"].chunk(2)
    factor = copies.std((1, 2, 3)) / images.std((1, 2, 3))
    shift = copies.mean((1, 2, 3)) - images.mean((1, 2, 3))
    line = (images - images.mean((2, 3), keepdim=True)) * factor.view(-1, 1, 1, 1)
    assert torch.allclose(copies - copies.mean((2, 3), keepdim=True), line, atol=1e-4)
    assert 0.6 <= factor.min() < 0.7 < 1.3 < factor.max() <= 1.4
    assert -0.3 <= shift.min() < -0.2 < 0.2 < shift.max() <= 0.3


@pytest.mark.parametrize("d", [2, 3])
def test_the_maps_flip_half_of_the_copies_turn_about_one_axis_and_zoom_both_ways(monkeypatch, d):
    drawn = {}

    def keep(shape, angles, planes, flips, scale, place):
        drawn.update(angles=angles, flips=flips, scale=scale, planes=planes)
        return torch.eye(d).repeat(len(angles), 1, 1), torch.zeros(len(angles), d)

    monkeypatch.setattr(exemplar, "view_maps", keep)
    suited(d, angle=60).ask(torch.zeros(2000, 1, *(2,) * d), rng())
    assert torch.equal((drawn["angles"] != 0).sum(1), torch.ones(2000, dtype=torch.int64))
    assert drawn["angles"].abs().max().rad2deg() == pytest.approx(60, abs=1)
    assert drawn["flips"].sum(1).max() == 1
    assert drawn["flips"].float().mean(0).tolist() == pytest.approx([0.5 / d] * d, abs=0.04)
    assert [float(drawn["scale"].min()), float(drawn["scale"].max())] == pytest.approx([0.8, 1.25], abs=0.01)
    assert (drawn["scale"] < 1).float().mean() == pytest.approx(0.5, abs=0.04)


def test_planes_are_those_of_equal_spacing_unless_named():
    crop = (16, 16, 16)
    assert Exemplar().suited_to(crop, (1.0, 1.0, 3.0)).planes == "xy"
    assert Exemplar(planes="xz").suited_to(crop, (1.0, 1.0, 3.0)).planes == "xz"
    nowhere = Exemplar().suited_to(crop, (1.0, 2.0, 3.0))
    assert nowhere.planes == "none"
    assert nowhere.ask(torch.randn(2, 1, *crop), rng())["views"].isfinite().all()


def test_a_batch_of_one_is_refused():
    with pytest.raises(UsageError, match="--batch 2"):
        suited(2).ask(torch.zeros(1, 1, 8, 8), rng())
