"""Losses against loops, closed forms, and two processes against one."""

import math
import subprocess
import sys

import pytest
import torch

from selfvox.ops.losses import (
    dice_cross_entropy,
    dice_cross_entropy_regions,
    log_dice,
    log_dice_regions,
    nt_xent,
    soft_dice,
    soft_dice_regions,
    triplet_loss,
)


def naive_nt_xent(views, temperature, scan=None, further=()):
    """Paper B, equation (1), pair by pair; retrieval; and what random guesses reach of both."""
    count = len(views)
    unit = [view / view.norm() for view in [*views.double(), *further]]
    total = 0.0
    hits = 0
    chance = 0.0
    loss_chance = 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        candidates = [
            k
            for k in range(count)
            if k != i and (k == partner or scan is None or int(scan[k]) != int(scan[i]))
        ]
        candidates += range(count, len(unit))
        similarity = {k: float(unit[i] @ unit[k]) / temperature for k in candidates}
        total -= math.log(
            math.exp(similarity[partner]) / sum(math.exp(value) for value in similarity.values())
        )
        hits += max(similarity, key=similarity.__getitem__) == partner
        chance += 1 / len(candidates)
        loss_chance += math.log(len(candidates))
    return total / count, hits / count, chance / count, loss_chance / count


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize(
    "scan", [None, torch.tensor([0, 0, 1, 2, 2]).repeat(2)], ids=["all", "masked"]
)
def test_nt_xent_equals_loops(temperature, scan):
    first = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    views = torch.cat(
        [first, first + 0.8 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))]
    )
    actual = nt_xent(views, temperature, scan)
    assert [float(value) for value in actual] == pytest.approx(
        naive_nt_xent(views, temperature, scan), rel=1e-4
    )


@pytest.mark.parametrize("scan", [None, torch.tensor([0, 0, 1]).repeat(2)], ids=["all", "masked"])
def test_nt_xent_against_further_embeddings_equals_loops(scan):
    views, further = (
        torch.randn(6, 8, requires_grad=True),
        3 * torch.randn(7, 8, requires_grad=True),
    )
    actual = nt_xent(views, 0.3, scan, further)
    expected = naive_nt_xent(views.detach(), 0.3, scan, further.detach().double())
    assert [float(value.detach()) for value in actual] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_nt_xent_of_identical_embeddings_is_the_log_of_the_choices(count):
    actual = nt_xent(torch.ones(2 * count, 4), 0.05)
    assert float(actual.loss) == pytest.approx(math.log(2 * count - 1), rel=1e-5)
    assert float(actual.chance) == pytest.approx(1 / (2 * count - 1))


def test_nt_xent_of_perfect_pairs_is_nearly_zero():
    actual = nt_xent(torch.eye(6).repeat(2, 1), 0.05)
    assert float(actual.loss) < 1e-6
    assert float(actual.accuracy) == 1


def test_mixed_precision_does_not_round_the_similarities():
    views = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(views, 0.05).loss
    assert torch.equal(inside, nt_xent(views, 0.05).loss)


WORKER = """
import sys
import torch
from selfvox.ops.gather import gather_embeddings
from selfvox.ops.losses import nt_xent

rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
)
inputs = torch.load(f"{meeting}.pt", weights_only=True)
results = {}
for masked in (False, True):
    weight = inputs["weight"].clone().requires_grad_()
    # N = 6 samples, three on each device; both hold one of scan 1
    mine = inputs["images"].view(2, 2, 3, -1)[:, rank].flatten(0, 1)
    scan = torch.tensor([[0, 0, 1], [1, 2, 2]])[rank].repeat(2) if masked else None
    actual = nt_xent(mine @ weight, 0.2, scan)
    actual.loss.backward()
    torch.distributed.all_reduce(weight.grad)
    scores = {name: value.detach() for name, value in actual._asdict().items()}
    results[str(masked)] = {**scores, "gradient": weight.grad / 2}
results["rows"] = gather_embeddings(inputs["images"].view(2, 2, 3, -1)[0, rank].requires_grad_())
torch.save(results, f"{out}{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    rng = torch.Generator().manual_seed(0)
    given = {
        "images": torch.randn(12, 5, generator=rng),
        "weight": torch.randn(5, 4, generator=rng),
    }
    meeting = tmp_path / "meeting"
    torch.save(given, f"{meeting}.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(meeting), str(tmp_path / "out")]
        )
        for rank in range(2)
    ]
    try:
        assert [worker.wait(600) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for masked in (False, True):
        weight = given["weight"].clone().requires_grad_()
        scan = torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2) if masked else None
        expected = nt_xent(given["images"] @ weight, 0.2, scan)
        expected.loss.backward()
        for rank in range(2):
            actual = torch.load(f"{tmp_path / 'out'}{rank}.pt", weights_only=True)[str(masked)]
            for name in expected._fields:
                assert torch.allclose(actual[name], getattr(expected, name), rtol=1e-5)
            # devices average their gradients, as DDP does
            assert torch.allclose(actual["gradient"], weight.grad, rtol=1e-4, atol=1e-6)
    for rank in range(2):  # every device holds the rows of all, by rank
        rows = torch.load(f"{tmp_path / 'out'}{rank}.pt", weights_only=True)["rows"]
        assert torch.equal(rows, given["images"][:6])
        assert not rows.requires_grad


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 2)])
def test_soft_dice_equals_equation_2_by_hand(space):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *space, generator=rng)
    target = torch.randint(3, (2, *space), generator=rng, dtype=torch.uint8)
    probability = torch.softmax(logits.double(), 1).movedim(1, -1).reshape(-1, 3)
    scores = []
    for c in range(3):
        overlap = predicted = present = 0.0
        for p, g in zip(probability[:, c].tolist(), target.flatten().tolist(), strict=True):
            overlap, predicted, present = overlap + p * (g == c), predicted + p, present + (g == c)
        scores.append((2 * overlap + 1e-5) / (predicted + present + 1e-5))
    assert float(soft_dice(logits, target)) == pytest.approx(-sum(scores) / 3, rel=1e-5)
    picked = [
        math.log(row[g])
        for row, g in zip(probability.tolist(), target.flatten().tolist(), strict=True)
    ]
    expected_sum = -sum(scores) / 3 - sum(picked) / len(picked)
    assert float(dice_cross_entropy(logits, target)) == pytest.approx(expected_sum, rel=1e-5)


@pytest.mark.parametrize(
    ("plain", "compound"),
    [(soft_dice, dice_cross_entropy), (soft_dice_regions, dice_cross_entropy_regions)],
)
def test_weights_make_a_weighted_mean_of_the_dice_of_the_classes(plain, compound):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=rng)
    target = torch.randint(3, (2, 4, 5), generator=rng)
    if plain is soft_dice_regions:
        target = torch.rand(2, 3, 4, 5, generator=rng) > 0.5
    single = [float(plain(logits, target, torch.eye(3)[number])) for number in range(3)]
    assert float(plain(logits, target)) == pytest.approx(sum(single) / 3)
    weights = torch.tensor([1.0, 2.0, 5.0])
    expected = (single[0] + 2 * single[1] + 5 * single[2]) / 8
    assert float(plain(logits, target, weights)) == pytest.approx(expected)
    cross_entropy = compound(logits, target) - plain(logits, target)
    assert float(compound(logits, target, weights) - cross_entropy) == pytest.approx(expected)


OF_REGIONS = [soft_dice_regions, log_dice_regions, dice_cross_entropy_regions]
LOSSES = [soft_dice, log_dice, dice_cross_entropy, *OF_REGIONS]


def drawn(loss, *space):
    """Logits and a target of two samples and three classes or regions."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *space, generator=rng)
    if loss in OF_REGIONS:
        return logits, torch.rand(2, 3, *space, generator=rng) > 0.5
    return logits, torch.randint(3, (2, *space), generator=rng)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("space", [(4, 5), (3, 4, 2)])
def test_a_voxel_counts_as_often_as_its_trust_says(loss, space):
    logits, target = drawn(loss, *space)
    logits.requires_grad_()
    counts = torch.randint(3, (2, *space), generator=torch.Generator().manual_seed(1))
    # a second implementation: one long picture, in which each voxel is repeated or left out
    repeats = counts.flatten()
    rows = logits.movedim(1, -1).reshape(-1, 3).repeat_interleave(repeats, 0)
    is_regions = target.ndim == logits.ndim
    flat = target.movedim(1, -1).reshape(-1, 3) if is_regions else target.flatten()
    flat = flat.repeat_interleave(repeats, 0)
    expected = loss(rows.T[None], (flat.T if is_regions else flat)[None])
    actual = loss(logits, target, trusted=counts / 2)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(actual, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)
    assert not gradient.movedim(1, -1)[counts == 0].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_trusted_voxels_is_the_loss_without_trust(loss):
    logits, target = drawn(loss, 4, 5)
    trusted = torch.ones(2, 4, 5, dtype=torch.bool)
    for weights in (None, torch.tensor([1.0, 2.0, 5.0])):
        plain = float(loss(logits, target, weights))
        assert float(loss(logits, target, weights, trusted=trusted)) == pytest.approx(plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_trusted_voxel_nothing_is_learnt(loss):
    logits, target = drawn(loss, 4, 5)
    logits.requires_grad_()
    loss(logits, target, trusted=torch.zeros(2, 4, 5)).backward()
    assert not logits.grad.any()


def test_soft_dice_of_the_truth_is_minus_one_and_of_an_absent_class_too():
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[:, :2] = 1
    logits = torch.nn.functional.one_hot(target.long(), 3).movedim(-1, 1) * 100.0
    assert float(soft_dice(logits, target)) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0, 7.0]])
def test_log_dice_equals_loops_over_the_classes_that_are_present(weights):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 3, generator=rng)
    target = torch.randint(3, (2, 5, 3), generator=rng)  # class 3 is absent
    probability = torch.softmax(logits.double(), 1).movedim(1, -1).reshape(-1, 4)
    total = weight = 0.0
    for c in range(3):
        overlap = predicted = present = 0.0
        for p, g in zip(probability[:, c].tolist(), target.flatten().tolist(), strict=True):
            overlap, predicted, present = overlap + p * (g == c), predicted + p, present + (g == c)
        counts = 1.0 if weights is None else weights[c]
        total -= counts * math.log((2 * overlap + 1e-5) / (predicted + present + 1e-5))
        weight += counts
    given = None if weights is None else torch.tensor(weights)
    assert float(log_dice(logits, target, given)) == pytest.approx(total / weight, rel=1e-5)
    # of regions: the two classes of a softmax over (x, 0) are a region with the logit x
    of_region = log_dice_regions(logits[:, :1], (target == 0)[:, None])
    of_classes = log_dice(
        torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :1]], 1),
        (target == 0).long(),
        torch.tensor([0.0, 1.0]),
    )
    assert float(of_region) == pytest.approx(float(of_classes), rel=1e-5)


@pytest.mark.parametrize(("loss", "keeps"), [(soft_dice, False), (log_dice, True)])
def test_the_slope_of_log_dice_does_not_vanish_with_the_probability_of_a_class(loss, keeps):
    target = torch.zeros(1, 20, 20, dtype=torch.long)
    target[:, :2, :2] = 1

    def slope(logit):
        logits = torch.zeros(1, 2, 20, 20)
        logits[:, 1] = logit
        logits.requires_grad_()
        loss(logits, target).backward()
        return float(-logits.grad[0, 1, :2, :2].mean())

    assert (slope(-8.0) > 0.5 * slope(-4.0)) == keeps


@pytest.mark.parametrize("squared", [True, False])
def test_triplet_equals_loops(squared):
    rng = torch.Generator().manual_seed(0)
    anchor, positive, negative = (0.5 * torch.randn(7, 5, generator=rng) for _ in range(3))
    total, ordered = 0.0, 0
    for a, p, n in zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True):
        near, far = (
            sum((x - y) ** 2 for x, y in zip(a, compared, strict=True)) for compared in (p, n)
        )
        if not squared:
            near, far = math.sqrt(near), math.sqrt(far)
        total, ordered = total + max(0.0, near - far + 0.4), ordered + (near < far)
    actual = triplet_loss(anchor, positive, negative, 0.4, squared=squared)
    assert [float(value) for value in actual] == pytest.approx([total / 7, ordered / 7], rel=1e-5)


def test_triplets_that_do_not_count_change_nothing():
    rows = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([True, False, True, True, False, True])
    actual, expected = (
        triplet_loss(*rows, 0.4, counted=counted),
        triplet_loss(*rows[:, counted], 0.4),
    )
    assert [float(value) for value in actual] == pytest.approx([float(value) for value in expected])
    rows.requires_grad_()
    uncounted = triplet_loss(*rows, 0.4, counted=torch.zeros(6, dtype=torch.bool))
    assert [float(value.detach()) for value in uncounted] == [0, 0]
    assert not torch.autograd.grad(uncounted.loss, rows)[0].any()


@pytest.mark.parametrize("squared", [True, False])
def test_triplet_at_equal_distances_is_the_margin_and_has_a_finite_gradient(squared):
    anchor = torch.zeros(4, 3, requires_grad=True)
    for compared in (torch.zeros(4, 3), torch.ones(4, 3)):
        actual = triplet_loss(anchor, compared, -compared, 0.7, squared=squared)
        assert float(actual.loss.detach()) == pytest.approx(0.7)
        assert torch.autograd.grad(actual.loss, anchor)[0].isfinite().all()


def test_triplet_beyond_the_margin_costs_nothing():
    actual = triplet_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), 1.0)
    assert [float(actual.loss), float(actual.ordered)] == [0, 1]
