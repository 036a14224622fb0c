"""Exemplar: an image, its copy transformed in one resampling, and always a different image."""

import math

import pytest
import torch
from torch import nn

from selfvox.errors import UsageError
from selfvox.ops import losses
from selfvox.ops.losses import nt_xent
from selfvox.tasks import exemplar, task_from_setting
from selfvox.tasks.exemplar import Exemplar, MemoryHead


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def suited(d=3, **options):
    return task_from_setting({"name": "exemplar", **options}).configure((16,) * d, (1.0,) * d)


class Flat(nn.Module):
    """An encoder whose embedding is the image itself."""

    def embed(self, x):
        return x.flatten(1)


def answer(task, batch):
    return task.loss(Flat(), nn.Identity(), batch)


@pytest.mark.parametrize("distance", ["squared", "plain"])
def test_loss_and_accuracy_equal_loops(distance):
    task = suited(2, distance=distance, margin=0.7)
    batch = task.make_batch(torch.randn(6, 1, 8, 8, generator=rng()), rng(1))
    unit = [(view / view.norm()).flatten().tolist() for view in batch["views"].double()]
    total = 0.0
    ordered = 0
    for i, negative in enumerate(batch["other"].tolist()):
        near, far = (
            sum((a - b) ** 2 for a, b in zip(unit[i], unit[k], strict=True))
            for k in (i + 6, negative)
        )
        if distance == "plain":
            near, far = math.sqrt(near), math.sqrt(far)
        total += max(0.0, near - far + 0.7)
        ordered += near < far
    outcome = answer(task, batch)
    assert float(outcome.loss) == pytest.approx(total / 6, rel=1e-5)
    assert float(outcome.metrics["accuracy"]) == pytest.approx(ordered / 6)
    assert float(outcome.metrics["chance"]) == 0.5


def test_collapsed_embeddings_cost_the_margin_and_have_no_spread():
    scan = torch.arange(4).repeat(2)
    outcome = answer(
        suited(2), {"views": torch.ones(8, 1, 4, 4), "scan": scan, "other": torch.arange(4).roll(1)}
    )
    assert float(outcome.loss) == pytest.approx(1.0)
    assert float(outcome.metrics["embedding_std"]) == pytest.approx(0, abs=1e-6)
    assert float(outcome.metrics["accuracy"]) == 0


def test_the_contrastive_objective_is_nt_xent_over_images_and_copies():
    task = suited(2, objective="contrastive", temperature=0.3)
    batch = task.make_batch(torch.randn(5, 1, 8, 8), rng())
    assert float(answer(task, batch).loss) == pytest.approx(
        float(nt_xent(batch["views"].flatten(1), 0.3).loss)
    )


def test_the_bank_holds_the_last_embeddings_of_images_not_of_copies():
    head = MemoryHead(5)
    remembered = []
    scans = [-1] * 5
    task = suited(2, bank=5)
    remembered += head.bank.tolist()
    for seed, count in enumerate([2, 3, 4, 7, 2]):  # 7: more than the size of the bank
        images = torch.randn(count, 1, 8, 16, generator=rng(seed))
        batch = task.make_batch(images, rng(seed), torch.arange(count) + 100 * seed)
        task.loss(Flat(), head, batch)
        scans += (torch.arange(count) + 100 * seed).tolist()
        remembered += nn.functional.normalize(batch["views"][:count].flatten(1), dim=1).tolist()
        assert sorted(head.bank.tolist()) == sorted(torch.tensor(remembered[-5:]).tolist())
        assert head.bank[head.oldest].tolist() == remembered[-5]
        assert (
            dict(zip(head.scan.tolist(), head.bank.tolist(), strict=True)).items()
            >= dict(zip(scans[-5:], torch.tensor(remembered[-5:]).tolist(), strict=True)).items()
        )
    head.eval()
    before = head.bank.clone()
    task.loss(Flat(), head, batch)
    assert torch.equal(head.bank, before)


@pytest.mark.parametrize("objective", ["triplet", "contrastive"])
def test_with_a_bank_each_image_is_told_from_its_own_and_from_another_of_the_past(objective):
    options = {"margin": 1.5} if objective == "triplet" else {"temperature": 0.3}
    task = suited(2, bank=9, objective=objective, **options)
    head = MemoryHead(9)
    head.scan.copy_(torch.tensor([-1, 0, 1, 2, 3, 4, 5, 6, 7]))
    batch = task.make_batch(torch.randn(6, 1, 8, 16, generator=rng()), rng(1))
    batch["remembered"] = torch.tensor([0, 2, 3, 8, 6, 1])  # nobody's, the image's own, and others'
    bank = head.bank.clone()
    unit = nn.functional.normalize(batch["views"].flatten(1), dim=1)
    terms = []
    ordered = []
    for i in range(6):
        past = batch["remembered"][i]
        for far in (
            unit[batch["other"][i]],
            *([bank[past]] if head.scan[past] not in (-1, i) else []),
        ):
            near_by, far_by = (
                (unit[i] - reference).square().sum().item() for reference in (unit[i + 6], far)
            )
            terms.append(max(0, near_by - far_by + 1.5))
            ordered.append(near_by < far_by)
    assert len(terms) == 6 + 3
    expected = sum(terms) / len(terms)
    if objective == "contrastive":
        expected = 0
        for i in range(12):
            candidates = [unit[j] for j in range(12) if j != i]
            candidates += [bank[k] for k in range(9) if head.scan[k] != i % 6]
            similar = torch.stack(candidates) @ unit[i] / 0.3
            expected += float(similar.logsumexp(0) - unit[(i + 6) % 12] @ unit[i] / 0.3) / 12
    outcome = task.loss(Flat(), head, batch)
    assert float(outcome.loss) == pytest.approx(expected, rel=1e-5)
    assert float(outcome.metrics["accuracy"]) == pytest.approx(sum(ordered) / len(ordered))


def test_a_bank_that_has_seen_nothing_counts_for_nothing():
    images = torch.randn(6, 1, 8, 16, generator=rng())
    task = suited(2, bank=9)
    head = MemoryHead(9)
    with_bank = task.loss(Flat(), head, task.make_batch(images, rng(1)))
    without = suited(2)
    without = answer(without, without.make_batch(images, rng(1)))
    assert float(with_bank.loss) == pytest.approx(float(without.loss))
    assert float(with_bank.metrics["accuracy"]) == pytest.approx(float(without.metrics["accuracy"]))
    assert (head.scan >= 0).sum() == 6


def test_every_place_of_the_bank_is_drawn_equally_often():
    task = suited(2, bank=4)
    drawn = torch.cat(
        [task.make_batch(torch.zeros(8, 1, 8, 8), rng(seed))["remembered"] for seed in range(150)]
    )
    assert torch.allclose(drawn.bincount(minlength=4) / len(drawn), torch.tensor(0.25), atol=0.05)


def test_the_bank_takes_no_gradient_and_lets_it_through_to_what_is_new():
    encoder = Flat()
    task = suited(2, bank=6, objective="contrastive")
    encoder.width = 64
    head = task.head(encoder)
    for _ in range(2):  # the second step compares with what the first one left
        task.loss(encoder, head, task.make_batch(torch.randn(4, 1, 8, 8), rng())).loss.backward()
    assert not head.bank.requires_grad
    assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())


def test_one_head_serves_all_three():
    """With three heads, biases alone reach loss zero; with one, a blind encoder pays the margin."""
    task = suited(2)
    encoder = Flat()
    encoder.width = 16
    batch = {
        "views": torch.zeros(8, 1, 4, 4),
        "scan": torch.arange(4).repeat(2),
        "other": torch.arange(4).roll(1),
    }
    outcome = task.loss(encoder, task.head(encoder), batch)
    assert float(outcome.loss.detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_other_image_is_never_the_image_itself_and_each_other_equally_often(count):
    draws = rng()
    drawn = torch.stack(
        [suited(2).make_batch(torch.zeros(count, 1, 8, 8), draws)["other"] for _ in range(200)]
    )
    shares = nn.functional.one_hot(drawn, count).float().mean(0)
    assert not shares.diagonal().any()
    assert torch.allclose(
        shares[~torch.eye(count, dtype=torch.bool)], torch.tensor(1 / (count - 1)), atol=0.15
    )


def test_the_other_image_is_of_another_scan_and_each_such_equally_often():
    scan = torch.tensor([4, 9, 4, 7, 4])
    draws = rng()
    drawn = torch.stack(
        [suited(2).make_batch(torch.zeros(5, 1, 8, 8), draws, scan)["other"] for _ in range(200)]
    )
    shares = nn.functional.one_hot(drawn, 5).float().mean(0)
    differs = scan[:, None] != scan
    assert not shares[~differs].any()
    assert torch.allclose(
        shares[differs], (differs / differs.sum(1, keepdim=True))[differs], atol=0.15
    )


def test_images_without_another_scan_beside_them_do_not_count():
    images = torch.randn(4, 1, 8, 16, generator=rng())
    task = suited(2)
    outcome = answer(task, task.make_batch(images, rng(1), torch.zeros(4, dtype=torch.int64)))
    assert [
        float(outcome.loss),
        float(outcome.metrics["accuracy"]),
        float(outcome.metrics["chance"]),
    ] == [0, 0, 0]
    task = suited(2, bank=5)
    head = MemoryHead(5)
    head.scan.fill_(7)
    batch = task.make_batch(images, rng(1), torch.zeros(4, dtype=torch.int64))
    bank = head.bank.clone()
    unit = nn.functional.normalize(batch["views"].flatten(1), dim=1)
    past = losses.triplet_loss(*unit.chunk(2), bank[batch["remembered"]], 1.0)
    assert float(task.loss(Flat(), head, batch).loss) == pytest.approx(float(past.loss))


def test_the_contrastive_objective_leaves_out_other_crops_of_the_same_scan():
    task = suited(2, objective="contrastive", temperature=0.3)
    scan = torch.tensor([3, 1, 3, 2])
    batch = task.make_batch(torch.randn(4, 1, 8, 8, generator=rng()), rng(), scan)
    expected = nt_xent(batch["views"].flatten(1), 0.3, scan.repeat(2)).loss
    assert float(answer(task, batch).loss) == pytest.approx(float(expected))


@pytest.mark.parametrize("d", [2, 3])
def test_images_stay_and_their_copies_are_made_in_one_resampling(monkeypatch, d):
    calls = []
    resample = exemplar.resample
    monkeypatch.setattr(
        exemplar, "resample", lambda x, *maps: calls.append(len(x)) or resample(x, *maps)
    )
    images = torch.randn(4, 2, *(8,) * d)
    first, copies = suited(d).make_batch(images, rng())["views"].chunk(2)
    assert calls == [4]
    assert torch.equal(first, images)
    assert ((copies - images).abs().amax(tuple(range(1, d + 2))) > 0.1).all()


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 12)])
def test_nothing_is_filled_in_at_the_borders_of_a_copy(monkeypatch, shape):
    monkeypatch.setattr(exemplar, "shift_brightness", lambda x, shift: x)
    images = torch.full((6, 2, *shape), 7.5)
    for seed in range(10):
        copies = suited(len(shape), zoom=4).make_batch(images, rng(seed))["views"][6:]
        assert torch.allclose(copies, torch.tensor(7.5), atol=1e-4)


def test_brightness_and_contrast_change_an_image_by_a_straight_line(monkeypatch):
    monkeypatch.setattr(exemplar, "resample", lambda x, *maps: x)
    images, copies = suited(2).make_batch(torch.randn(50, 1, 16, 16), rng())["views"].chunk(2)
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
    suited(d, angle=60).make_batch(torch.zeros(2000, 1, *(2,) * d), rng())
    assert torch.equal((drawn["angles"] != 0).sum(1), torch.ones(2000, dtype=torch.int64))
    assert drawn["angles"].abs().max().rad2deg() == pytest.approx(60, abs=1)
    assert drawn["flips"].sum(1).max() == 1
    assert drawn["flips"].float().mean(0).tolist() == pytest.approx([0.5 / d] * d, abs=0.04)
    assert [float(drawn["scale"].min()), float(drawn["scale"].max())] == pytest.approx(
        [0.8, 1.25], abs=0.01
    )
    assert (drawn["scale"] < 1).float().mean() == pytest.approx(0.5, abs=0.04)


def test_planes_are_those_of_equal_spacing_unless_named():
    crop = (16, 16, 16)
    assert Exemplar().configure(crop, (1.0, 1.0, 3.0)).planes == "xy"
    assert Exemplar(planes="xz").configure(crop, (1.0, 1.0, 3.0)).planes == "xz"
    assert Exemplar().configure(crop, (1.0, 1.0, 3.0), (2.0, 2.0, 2.0)).planes == "xy"
    assert Exemplar().configure(crop, (0.5, 0.5, 5.0), (4.5, 0.5, 0.5)).planes == "none"
    nowhere = Exemplar().configure(crop, (1.0, 2.0, 3.0))
    assert nowhere.planes == "none"
    assert nowhere.make_batch(torch.randn(2, 1, *crop), rng())["views"].isfinite().all()


def test_a_batch_of_one_is_refused():
    with pytest.raises(UsageError, match="--batch 2"):
        suited(2).make_batch(torch.zeros(1, 1, 8, 8), rng())


def test_the_copy_is_of_another_scan_of_the_person_where_there_is_one():
    images, partners = torch.randn(2, 4, 1, 16, 16, generator=rng())
    task = suited(2, positives="subject")
    assert task.pairs_scans
    assert not suited(2).pairs_scans
    first, copies = task.make_pair_batch(images, partners, rng())["views"].chunk(2)
    assert torch.equal(first, images)
    assert torch.equal(copies, task.make_batch(partners, rng())["views"].chunk(2)[1])
