"""SimCLR: two views of each sample, made as the settings say, without traces at their borders."""

import itertools
import math

import pytest
import torch

from selfvox.errors import UsageError
from selfvox.ops.losses import nt_xent
from selfvox.tasks import simclr, task_from_setting
from selfvox.tasks.simclr import OPS, SimCLR

GEOMETRIC = ("rotate", "flip", "crop")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Flat(torch.nn.Module):
    """An encoder whose embedding is the image itself."""

    def embed(self, x):
        return x.flatten(1)


def suited(d=3, **options):
    return task_from_setting({"name": "simclr", **options}).configure((16,) * d, (1.0,) * d)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("per_view", [1, 2, 3])
def test_the_two_views_of_a_sample_always_differ(d, per_view):
    task = suited(d, ops_per_view=per_view)
    for seed in range(40):
        first, second = task.make_batch(torch.randn(8, 1, *(8,) * d), rng(seed))["views"].chunk(2)
        assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "ops",
    [("identity", "noise"), ("flip", "rotate"), ("sobel", "identity", "crop"), ("colour", "sobel")],
)
def test_the_two_views_differ_with_few_operations_too(ops):
    for seed, per_view in itertools.product(range(40), range(1, len(ops) + 1)):
        task = suited(2, ops=ops, ops_per_view=per_view)
        first, second = task.make_batch(torch.randn(6, 1, 8, 8), rng(seed))["views"].chunk(2)
        assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("per_view", range(1, len(OPS) + 1))
def test_every_view_has_as_many_operations_as_asked_each_equally_often(per_view):
    chosen = suited(ops_per_view=per_view)._choose_ops(4000, rng())
    assert torch.equal(chosen.sum(1), torch.full((8000,), per_view))
    # the rule that views differ shifts the shares a little where views have one operation
    assert torch.allclose(chosen.float().mean(0), torch.full((8,), per_view / 8), atol=0.03)


@pytest.mark.parametrize("d", [2, 3])
def test_geometry_is_one_resampling(monkeypatch, d):
    calls = []
    resample = simclr.resample
    monkeypatch.setattr(
        simclr, "resample", lambda x, *maps: calls.append(len(x)) or resample(x, *maps)
    )
    suited(d, ops=GEOMETRIC, ops_per_view=3).make_batch(torch.randn(4, 1, *(8,) * d), rng())
    assert calls == [8]


def test_views_without_geometry_keep_their_voxels():
    images = torch.randn(3, 1, 8, 8, 8)
    task = suited(ops=("identity", "colour"), ops_per_view=1)
    chosen = task._choose_ops(3, rng())
    views = task.make_batch(images, rng())["views"]
    for image, view, ops in zip(images.repeat(2, 1, 1, 1, 1), views, chosen.tolist(), strict=True):
        if ops[0]:
            assert torch.equal(view, image)
        else:
            slope = (view - view.mean()) / (image - image.mean())
            assert torch.allclose(slope, slope.mean().expand_as(slope), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 12)])
def test_nothing_is_filled_in_at_the_borders_of_a_view(shape):
    images = torch.full((6, 2, *shape), 7.5)
    for seed in range(10):
        views = suited(len(shape), ops=GEOMETRIC, ops_per_view=3, angle=180).make_batch(
            images, rng(seed)
        )["views"]
        assert torch.allclose(views, torch.tensor(7.5), atol=1e-4)


def test_a_crop_is_a_window_of_the_image_of_the_size_asked_for():
    edge = 32
    ramp = torch.arange(float(edge))[:, None].expand(40, 1, edge, edge)
    views = suited(2, ops=("crop", "identity"), ops_per_view=2, smallest_crop=0.5).make_batch(
        ramp, rng()
    )["views"][:, 0]
    inner = views[:, 2:-2].mean(2)
    steps = inner.diff(dim=1)
    assert torch.allclose(steps, steps.mean(1, keepdim=True).expand_as(steps), atol=1e-3)
    assert 0.5 <= steps.min() < 0.55
    assert 0.95 < steps.max() <= 1.0
    # the outermost half voxel of the whole image is all that a view may reach
    centre, scale = views[:, 15:17].mean((1, 2)), steps.mean(1)
    assert (centre - scale * edge / 2).min() >= -0.5 - 1e-3
    assert (centre + scale * edge / 2).max() <= edge - 0.5 + 1e-3


def test_flips_flip_and_rotations_rotate():
    images = torch.randn(20, 1, 8, 8, 8)
    for op in ("flip", "rotate"):
        task = suited(ops=(op, "identity", "colour"), ops_per_view=1)
        chosen = task._choose_ops(20, rng())
        pictures = task.make_batch(images, rng())["views"]
        moved = [
            bool((a - b).abs().max() > 0.01)
            for a, b in zip(pictures, images.repeat(2, 1, 1, 1, 1), strict=True)
        ]
        assert all(
            is_moved for is_moved, ops in zip(moved, chosen[:, 0].tolist(), strict=True) if ops
        )


def test_samples_are_the_tiles_of_each_image_and_know_their_scan():
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 32, 16)
    batch = suited(2, grid=2, ops=GEOMETRIC).make_batch(images, rng())
    assert batch["views"].shape == (24, 1, 16, 8)
    assert torch.allclose(batch["views"].mean((1, 2, 3)), batch["scan"].float(), atol=1e-4)


@pytest.mark.parametrize("grid", [1, 2])
def test_the_second_view_is_of_another_scan_of_the_person_where_there_is_one(grid):
    images, others = torch.randn(2, 3, 1, 32, 16, generator=rng())
    partners = others.clone()
    partners[1] = images[1]  # of a person with a single scan
    task = suited(2, grid=grid, positives="subject", ops=GEOMETRIC)
    first, second = task.make_pair_batch(images, partners, rng())["views"].chunk(2)
    assert torch.equal(first, task.make_batch(images, rng())["views"].chunk(2)[0])
    assert torch.equal(second, task.make_batch(partners, rng())["views"].chunk(2)[1])


def test_other_scans_of_the_person_are_no_negatives_of_a_pair():
    images, partners = torch.randn(2, 3, 1, 16, 16, generator=rng())
    scan = torch.tensor([5, 2, 5])
    task = suited(2, positives="subject")
    batch = task.make_pair_batch(images, partners, rng(), scan)
    expected = nt_xent(batch["views"].flatten(1), task.temperature, scan.repeat(2))
    outcome = task.loss(Flat(), torch.nn.Identity(), batch)
    assert float(outcome.loss) == pytest.approx(float(expected.loss))
    with pytest.raises(UsageError, match=r"mask_same_scan: .* implies it; leave it out"):
        suited(2, positives="subject", mask_same_scan=True)


def test_crops_of_a_scan_that_the_batch_holds_twice_are_no_negatives_where_masked():
    images = torch.randn(3, 1, 16, 16, generator=rng())
    scan = torch.tensor([5, 2, 5])
    task = suited(2, grid=2, mask_same_scan=True)
    batch = task.make_batch(images, rng(), scan)
    assert torch.equal(batch["scan"], scan.repeat_interleave(4).repeat(2))
    expected = nt_xent(batch["views"].flatten(1), task.temperature, batch["scan"])
    outcome = task.loss(Flat(), torch.nn.Identity(), batch)
    assert [float(outcome.loss), float(outcome.metrics["chance"])] == pytest.approx(
        [*map(float, expected[::2])]
    )
    assert float(expected.chance) == pytest.approx((2 / 9 + 1 / 17) / 3)
    single_scan = task.loss(
        Flat(),
        torch.nn.Identity(),
        task.make_batch(images, rng(), torch.zeros(3, dtype=torch.int64)),
    )
    assert [float(single_scan.loss), float(single_scan.metrics["chance"])] == [0, 1]


def test_uniformity_is_that_of_all_pairs_without_an_operation_that_some_devices_lack(monkeypatch):
    monkeypatch.setattr(torch, "pdist", None)
    task = suited(2)
    batch = task.make_batch(torch.randn(3, 1, 8, 8, generator=rng()), rng())
    unit = [(view / view.norm()).flatten() for view in batch["views"].double()]
    pairs = [
        math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(unit, 2)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        uniformity = task.loss(Flat(), torch.nn.Identity(), batch).metrics["uniformity"]
    assert float(uniformity) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-4)


def test_planes_are_those_of_equal_spacing_unless_named():
    crop = (16, 16, 16)
    uneven = (1.0, 1.0, 3.0)
    assert SimCLR().configure(crop, uneven).planes == "xy"
    assert SimCLR(planes="xz").configure(crop, uneven).planes == "xz"
    assert SimCLR().configure(crop, (1.0, 1.0, 3.0), (2.0, 2.0, 2.0)).planes == "xy"
    assert SimCLR().configure(crop, (0.5, 0.5, 5.0), (4.5, 0.5, 0.5)).planes == "none"
    nowhere = SimCLR().configure(crop, (1.0, 2.0, 3.0))
    assert nowhere.planes == "none"
    assert "rotate" not in nowhere.ops


def test_where_rotate_is_left_out_and_too_little_stays_this_is_said():
    for options in ({"ops": "rotate,flip,crop"}, {"ops": "rotate", "ops_per_view": 1}):
        task = task_from_setting({"name": "simclr", **options})
        with pytest.raises(
            UsageError, match=r"^task\.ops.* \(rotate was left out of task\.ops, since no two axes"
        ):
            task.configure((16, 16), (1.0, 2.0))


def test_in_a_plane_of_equal_spacing_the_third_axis_stays():
    images = torch.arange(16.0).expand(4, 1, 16, 16, 16)
    task = SimCLR(ops=("rotate", "identity"), ops_per_view=2).configure(
        (16, 16, 16), (1.0, 1.0, 3.0)
    )
    assert torch.allclose(
        task.make_batch(images, rng())["views"], images.repeat(2, 1, 1, 1, 1), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"ops": "rotat,flip"}, "ops"),
        ({"ops": "crop,crop"}, "ops"),
        ({"ops": "identity"}, "ops"),
        ({"ops": "identity,sobel,flip"}, "ops"),
        ({"ops": "rotate,crop", "ops_per_view": 3}, "ops_per_view"),
        ({"planes": "none"}, "planes"),
        ({"planes": "xw"}, "planes"),
        ({"smallest_crop": 1.0}, "smallest_crop"),
        ({"angle": 200}, "angle"),
        ({"temperature": 0}, "temperature"),
        ({"grid": 4}, "grid"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options, name):
    with pytest.raises(UsageError, match=rf"^task\.{name}:"):
        suited(**options)


def test_a_misspelt_operation_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'rotate'"):
        suited(ops="rotat,flip")


def test_rotation_alone_on_spacings_that_all_differ_is_refused():
    with pytest.raises(UsageError, match=r"task\.ops"):
        SimCLR(ops=("rotate",), ops_per_view=1).configure((16, 16, 16), (1.0, 2.0, 3.0))


def test_a_scan_without_others_has_no_negatives_when_its_own_are_masked():
    images = torch.randn(1, 1, 16, 16)
    assert len(suited(2, grid=2).make_batch(images, rng())["views"]) == 8
    with pytest.raises(UsageError, match="--batch"):
        suited(2, grid=2, mask_same_scan=True).make_batch(images, rng())


def test_colour_changes_a_view_by_a_straight_line():
    images = torch.randn(50, 1, 16, 16, generator=rng(1))
    views = suited(2, ops="colour", ops_per_view=1).make_batch(images, rng())["views"]
    original = images.repeat(2, 1, 1, 1)
    space = (1, 2, 3)
    factor = views.std(space) / original.std(space)
    shift = views.mean(space) - original.mean(space)
    centred = original - original.mean(space, keepdim=True)
    line = factor.view(-1, 1, 1, 1) * centred
    assert torch.allclose(views - views.mean(space, keepdim=True), line, atol=1e-4)
    assert 0.6 <= factor.min() < 0.65 < 1.35 < factor.max() <= 1.4
    assert -0.3 <= shift.min() < -0.25 < 0.25 < shift.max() <= 0.3


def test_embeddings_spread_evenly_over_the_sphere_have_a_spread_of_one():
    views = torch.randn(200, 1, 16, 16, generator=rng())
    batch = {"views": views, "scan": torch.arange(100).repeat(2)}
    spread = suited(2).loss(Flat(), torch.nn.Identity(), batch).metrics["embedding_std"]
    assert float(spread) == pytest.approx(1, abs=0.02)
    batch["views"] = views[:1].expand(200, -1, -1, -1)
    collapsed = suited(2).loss(Flat(), torch.nn.Identity(), batch).metrics["embedding_std"]
    assert float(collapsed) == pytest.approx(0, abs=1e-5)
